"""The child process in which models live."""
