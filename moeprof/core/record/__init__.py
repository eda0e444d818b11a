"""The run on disk: its layout and history, typed headers, tables, routing counts, picks, lanes and pairs."""
