"""Router load, its nulls, shifts over time and what single picks tell."""
