"""The wing that reads the record: metrics, cost, doubts, the document. No torch, no clock, no I/O but reading."""
