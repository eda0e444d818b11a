"""vLLM's benchmark files: custom prompts with images or audio, and timed traces.

Custom prompts (``{"prompt", "output_tokens"}``) are moeprof's own form (jsonl.py) and recognised as that; with
``image_files``, ``video_files`` or ``audio_files`` beside the prompt they are read here. A timed trace has Mooncake's
keys and cannot be told from it, so it is read here only by name (``format: vllm``): its times are seconds and an id
stands for 16 tokens, vLLM's defaults (``--timed-trace-sec-multiplier`` 1, ``--timed-trace-chunk-hash-size`` 16);
``timestamp_unit`` and ``block_tokens`` take the place of the two.
Source: https://docs.vllm.ai/en/latest/benchmarking/cli/, https://github.com/vllm-project/vllm/pull/39795
"""

from __future__ import annotations

from moeprof.core.trace import Trace
from moeprof.sources.formats.calls import Call, count_of, trace_of
from moeprof.sources.formats.chat import ChatReader
from moeprof.sources.formats.columns import assemble, checked_text, lines_of, times
from moeprof.sources.formats.file import SourceFile, json_rows
from moeprof.sources.formats.mooncake import fast_columns, lengths_and_blocks, rows_of

CHUNK_TOKENS = 16
MEDIA = {
    "image_files": "image",
    "video_files": "video",
    "audio_files": "audio",
    "audio_filepaths": "audio",
    "multi_modal_data": "image",
}


def matches(file: SourceFile) -> bool:
    """True for prompts with media; the other forms are recognised elsewhere."""
    return "prompt" in file.keys and bool(file.keys & MEDIA.keys())


def read(file: SourceFile) -> Trace:
    """Read custom prompts or a timed trace.

    Raises:
        TraceError: see columns.py and mooncake.py.
    """
    return _prompts(file) if "prompt" in file.keys else _timed_trace(file)


def _timed_trace(file: SourceFile) -> Trace:
    fast = fast_columns(file, CHUNK_TOKENS, unit="s")
    if fast is not None:
        return assemble("vllm", file, **fast)
    file.use("timestamp")
    numbers, rows = rows_of(file)
    row_of = lines_of(numbers)
    return assemble(
        "vllm",
        file,
        arrival_s=times(file, "timestamp", [row.get("timestamp") for row in rows], row_of, unit="s"),
        **lengths_and_blocks(file, rows, row_of, CHUNK_TOKENS),
    )


def _prompts(file: SourceFile) -> Trace:
    file.use("prompt", "output_tokens", *MEDIA)
    chat = ChatReader(file=file)
    calls = []
    for number, row in json_rows(file):
        for key, medium in MEDIA.items():
            if row.get(key):
                chat.left_out(number, medium, len(row[key]) if isinstance(row[key], list) else 1)
        prompt = checked_text(file, number, "prompt", row.get("prompt"))
        asked = count_of(file, number, "output_tokens", row.get("output_tokens"))
        calls.append(Call(row=number, prompt=prompt, output_tokens=asked))
    return trace_of("vllm", file, calls, chat.notes())
