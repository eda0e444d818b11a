"""A proxy that forwards OpenAI-style traffic at once and writes down what a replay needs: `moeprof trace record`."""
