"""One module per command, and what only that command needs."""
