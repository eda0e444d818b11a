"""The nouns that both wings share: workload, trace, schedule, record, errors, units. No torch, no statistics."""
