"""Choice of the extractor a command starts from: the shipped one, a library's, or a new one."""
