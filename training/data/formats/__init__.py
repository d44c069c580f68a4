"""Folders of images, Parquet files and tables as sources; imports no torch."""
