"""Text: from files, the Hub and the miniature, by documents, to token windows."""
