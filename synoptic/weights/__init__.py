"""Names, files and layouts of weights."""
