"""Tests that run vLLM itself: ``make test-vllm``."""
