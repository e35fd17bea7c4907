"""Text: from its source to token windows.

Rows of a file, a Hub data set or the miniature become documents; documents become windows that keep track of their
document. `miniature` is the embedded default: a fictional world with its corpora and its shipped base model.
"""
