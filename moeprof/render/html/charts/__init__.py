"""Charts as SVG, one file a form."""
