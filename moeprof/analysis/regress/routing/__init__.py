"""Did the router change: agreement, health, layers."""
