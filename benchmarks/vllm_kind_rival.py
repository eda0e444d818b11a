"""A process of ``benchmarks.vllm_kind``, under vLLM's interpreter."""

from benchmarks.rival_talk import serve
from benchmarks.vllm_kind import get_ready

if __name__ == "__main__":
    serve(get_ready)
