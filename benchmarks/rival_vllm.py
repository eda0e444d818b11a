"""vLLM's CPU build as a rival: ``LLM.generate`` offline, in an environment of its own (``make bench-vllm``).

One process (no engine process beside it), so that it has as many threads as the others. No cached prefixes: rounds
repeat their prompts. Neither detokenizing nor a tokenizer: it gets ids and gives ids.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable

from benchmarks.rival_talk import Message, serve


def get_ready(spec: Message) -> tuple[Message, Callable[[], Message]]:
    """Load the model and run once, so that only second calls count."""
    os.environ |= {
        "OMP_NUM_THREADS": str(spec["threads"]),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }
    import vllm

    model = vllm.LLM(
        model=spec["model"],
        dtype=spec["dtype"],
        enforce_eager=spec["eager"],
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=spec["longest_tokens"],
        max_num_seqs=len(spec["requests"]),
        max_num_batched_tokens=max(spec["steps"]),
    )
    sampling = vllm.SamplingParams(temperature=0.0, max_tokens=spec["output_tokens"], ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": ids} for ids in spec["requests"]]

    def run_round() -> Message:
        gc.collect()
        gc.disable()
        start_s, cpu_s = time.perf_counter(), time.process_time()
        outputs = model.generate(prompts, sampling, use_tqdm=False)
        taken_s, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
        gc.enable()
        return {"seconds": taken_s, "cpu_s": cpu_s, "tokens": sum(len(one.outputs[0].token_ids) for one in outputs)}

    run_round()
    mode = "eager" if spec["eager"] else "compiled"
    return {"name": f"vllm {vllm.__version__} {mode}, max_num_batched_tokens={max(spec['steps'])}"}, run_round


if __name__ == "__main__":
    serve(get_ready)
