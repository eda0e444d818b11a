"""Load against capacity: steady window, overload, service-level objectives."""
