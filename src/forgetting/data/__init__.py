"""Text, from where it lies to token windows.

Rows of a file, a Hub data set or the miniature become documents, documents become windows that know their document.
`miniature` is the embedded default: a fictional world, its corpora and its shipped base model.
"""
