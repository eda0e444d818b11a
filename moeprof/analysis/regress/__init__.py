"""Did it get worse: gates, baselines, judgements, noise, trend."""
