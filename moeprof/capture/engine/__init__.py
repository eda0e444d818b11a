"""Engines run a model one step at a time behind one Protocol (base.py); one file per engine."""
