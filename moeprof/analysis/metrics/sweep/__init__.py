"""Sweeps over loads: a point for each load, the load that still keeps the service-level objectives."""
