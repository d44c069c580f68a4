"""The report of a run: sections of blocks, rendered as HTML and Markdown."""
