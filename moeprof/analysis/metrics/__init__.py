"""Metrics: pure functions of record tables; one file per subject, each metric has a card in analysis/cards.py."""
