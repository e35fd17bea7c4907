// The search box reads a leading dash as "without this word". Options are searched for with their dashes, so leave them out.
document.addEventListener("input", ({target}) => {
  if (!target.matches?.(".md-search__input")) return
  const words = target.value.replace(/(^|\s)-+(?=\w)/g, "$1")
  if (words !== target.value) target.value = words
}, true)
