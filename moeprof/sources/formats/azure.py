"""Azure LLM inference traces: ``TIMESTAMP,ContextTokens,GeneratedTokens``.

The 2023 files have seven fractional digits and no zone; the 2024 files may end in ``+00:00``. The multimodal ones also
have ``NumImages``: counted and told, the text is kept.
Source: https://github.com/Azure/AzurePublicDataset
"""

from __future__ import annotations

from moeprof.core.trace import Trace
from moeprof.sources.formats.columns import assemble, read_table
from moeprof.sources.formats.file import SourceFile

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def matches(file: SourceFile) -> bool:
    """True when the three columns are there."""
    return set(COLUMNS) <= set(file.header)


def read(file: SourceFile) -> Trace:
    """Read an Azure trace.

    Raises:
        TraceError: see columns.py; or a time stamp that is none.
    """
    table = read_table(file, COLUMNS, optional=("NumImages",))
    if table.has("NumImages"):
        images = table.tokens("NumImages")
        text = f"requests had {int(images.sum())} images (NumImages), which are left out; their text is kept"
        if images.any():
            file.note("images_left_out", int((images > 0).sum()), text)
    return assemble(
        "azure",
        file,
        arrival_s=table.seconds("TIMESTAMP", unit="iso"),
        input_tokens=table.tokens("ContextTokens"),
        output_tokens=table.tokens("GeneratedTokens"),
    )
