"""The nouns that both wings share: workload, trace, schedule, record, errors, units. No torch, no statistics."""

VERSION = "0.1.0"
