"""Statistics without any noun of ours: intervals, bootstrap, verdicts, power, change points, trends."""
