"""From a trace or a distribution to a schedule of requests with token ids."""
