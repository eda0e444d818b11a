"""Every number of a run, one file a subject."""
