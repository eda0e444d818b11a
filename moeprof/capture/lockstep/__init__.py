"""Several lanes stepped in turn, in one process or two."""
