"""One model of a command: its cell of the grid, its time, its training, and its publication."""
