"use strict";
// Draws the charts of a report from the JSON blocks of the page, in the page's own colours; sorts its tables.
(() => {
  const root = document.documentElement;
  const panels = new Map();
  for (const block of document.querySelectorAll("script.payload")) {
    panels.set(block.dataset.panel, { ...JSON.parse(block.textContent), hidden: new Set(["base", "failed"]) });
  }
  const divs = [...document.querySelectorAll(".chart")];
  const config = {
    displaylogo: false,
    showSendToCloud: false, // Plotly's default button uploads the chart: a report sends nothing anywhere
    plotlyServerURL: "",
    responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };

  // `var(--name)` anywhere in a figure becomes the style sheet's value: light, dark or paper
  function resolved(node, styles) {
    if (typeof node === "string") {
      return node.startsWith("var(") ? styles.getPropertyValue(node.slice(4, -1)).trim() : node;
    }
    if (Array.isArray(node)) {
      return typeof node[0] === "object" && node[0] !== null ? node.map((item) => resolved(item, styles)) : node;
    }
    if (node === null || typeof node !== "object") return node;
    return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, resolved(value, styles)]));
  }

  // the first line is the name; text comes escaped, so no markup but this is in it
  function hoverText(text) {
    const [name, ...lines] = text.split("\n");
    return [`<b>${name}</b>`, ...lines.map((line) => line.replace(/^L_(ft|f) /, "L<sub>$1</sub> "))].join("<br>");
  }

  function figure(div) {
    const panel = panels.get(div.dataset.panel);
    const spec = panel.charts[Number(div.dataset.chart)].spec;
    const { data, layout } = resolved(spec, getComputedStyle(root));
    for (const trace of data) {
      trace.visible = !panel.hidden.has(trace.meta.series);
      if (trace.meta.rows) trace.text = trace.meta.rows.map((row) => hoverText(panel.hover[row] ?? ""));
    }
    const narrow = div.clientWidth < 480;
    if (narrow) {
      layout.margin = { ...layout.margin, l: 48, r: 6 };
      layout.xaxis.nticks = 6;
      for (const axis of [layout.xaxis, layout.yaxis]) axis.title.font = { size: 12 };
      for (const note of layout.annotations ?? []) note.font.size = 12;
      layout.dragmode = false; // a finger scrolls the page
    }
    if (layout.xaxis.type === "log") thin(layout.xaxis, div.clientWidth);
    return { data, layout: { ...layout, autosize: true } };
  }

  // keep only tick labels that have room: at least 52 px each on the log axis
  function thin(axis, width) {
    const logs = axis.tickvals.map(Math.log10);
    const span = Math.max(logs.at(-1) - logs[0], 1e-9);
    let last = -Infinity;
    axis.ticktext = axis.ticktext.map((text, i) => {
      const at = ((logs[i] - logs[0]) / span) * (width - 100);
      if (at - last < 52) return "";
      last = at;
      return text;
    });
  }

  function draw(div) {
    const { data, layout } = figure(div);
    return Plotly.react(div, data, layout, config);
  }

  function drawAll() {
    return Promise.all(divs.map(draw));
  }

  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const key = button.closest(".panel").id;
      const { hidden } = panels.get(key);
      const series = button.dataset.series;
      if (!hidden.delete(series)) hidden.add(series);
      button.setAttribute("aria-pressed", String(!hidden.has(series)));
      divs.filter((div) => div.dataset.panel === key).forEach(draw);
    });
  }

  function compare(one, two) {
    const [a, b] = [Number(one), Number(two)];
    return Number.isNaN(a) || Number.isNaN(b) ? one.localeCompare(two, "en", { numeric: true }) : a - b;
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const way = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", way);
        const sign = way === "ascending" ? 1 : -1;
        const key = (row) => row.cells[column].dataset.key;
        table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => sign * compare(key(a), key(b))));
      });
    });
  }

  // the file is made by the page itself, so that it works offline and under its policy
  for (const block of document.querySelectorAll("script.csv-rows")) {
    const text = JSON.parse(block.textContent);
    const link = document.querySelector(`a.csv[data-panel="${block.dataset.panel}"]`);
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
    link.hidden = false;
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => {
    root.dataset.theme = "light"; // and paper's width, by the style sheet
    drawAll();
  });
  addEventListener("afterprint", () => {
    delete root.dataset.theme;
    drawAll();
  });
  drawAll().then(() => {
    root.dataset.drawn = String(divs.length);
  });
})();
