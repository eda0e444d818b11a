"""The page: templates, tables, charts."""
