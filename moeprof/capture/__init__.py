"""The wing that makes the record: engines, routing tap, recorders, replay. The only place that imports torch."""
