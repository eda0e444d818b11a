"""Did it get worse? Baselines, gates, verdicts, the change of routing, trends."""
