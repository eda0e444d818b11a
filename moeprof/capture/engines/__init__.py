"""Engines that turn requests into steps, and the faults that tests plant in them."""
