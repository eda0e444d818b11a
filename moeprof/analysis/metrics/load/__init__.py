"""Load against capacity: steady window, overload, and what interrupted a pass."""
