"""One listener a table: requests, steps, routing, telemetry, progress."""
