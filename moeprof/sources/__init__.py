"""Where requests come from: trace readers, synthetic traffic, prompt text. Everything here becomes a Schedule."""
