"""The C++ compiler of this machine. No torch: the parent asks before anything loads."""

from __future__ import annotations

import os
import shutil


def compiler() -> str | None:
    """Path of ``g++``, or of what CXX names; None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))
