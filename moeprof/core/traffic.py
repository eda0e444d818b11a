"""Shim until sources/traffic.py moves here."""
from moeprof.sources.traffic import *  # noqa
from moeprof.sources.traffic import Traffic  # noqa
