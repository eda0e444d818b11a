"""Where the real traces and counts lie beside the repository, if they do."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[3] / "shared"


def shared(path: str) -> Path:
    """A file under ../shared/data; skips the test with a reason where it is absent."""
    file = SHARED / "data" / path
    if not file.exists():
        pytest.skip(f"real data absent: ../shared/data/{path} (the repository is complete without it)")
    return file
