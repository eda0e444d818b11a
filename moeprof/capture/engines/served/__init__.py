"""Servers that speak OpenAI's HTTP API: what they are, how they are asked, and what comes back from them."""
