"""The report of a run: sections made of blocks, shown as HTML and as Markdown."""
