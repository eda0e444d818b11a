"""See the router and change what it picks: wrapper, tap, counts, overrides, recorded picks."""
