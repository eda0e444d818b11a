"""The Triton kernels on the CPU: interpreted against plain torch, and compiled for an H200 (not run).

Triton reads ``TRITON_INTERPRET`` when it is imported, so each file runs in a process of its own. ``make test-triton``
puts Triton where these tests find it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
OWN_PLACE = ROOT / ".venv-triton"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "interpret"),
    [
        ("interpreted_attention", "1"),
        ("interpreted_experts", "1"),
        ("interpreted_rotary", "1"),
        ("interpreted_engine", "1"),
        ("compiled_programs", "0"),
    ],
)
def test_the_kernels_agree_with_plain_torch(file: str, interpret: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("triton") is None and "MOEPROF_TEST_TRITON" not in os.environ:
        pytest.skip("triton is not in this environment; `make test-triton` puts it beside and runs these (minutes)")
    environment = os.environ | {
        "TRITON_INTERPRET": interpret,
        "TRITON_CACHE_DIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(OWN_PLACE)]),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", f"tests/helpers/{file}.py"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
