"""The Triton programs compiled for an H200 without one: they fit its shared memory and spill no registers.

Run by test_kernels_interpreted.py. What the machine code computes is not tested here, only that there is some.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moeprof.capture.kernels.triton import programs
from moeprof.capture.kernels.triton.attention import TILINGS
from moeprof.capture.kernels.triton.experts import TILINGS as EXPERT_TILINGS
from moeprof.capture.kernels.triton.launch import padded

H200 = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 227 * 1024
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def compiled(program: Any, types: dict[str, str], constants: dict[str, Any], tmp_path: Path, **options: int) -> None:
    """Compile; integers count as multiples of 16, as sizes of real models are."""
    names = program.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    attributes = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if name not in constants}
    source = ASTSource(fn=program, signature=signature, constexprs=constants, attrs=attributes)
    kernel = triton.compile(source, target=H200, options=options)
    assert kernel.metadata.shared <= SHARED_BYTES
    (tmp_path / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", str(tmp_path / "kernel.cubin")]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert " STACK:0 " in usage, usage


@pytest.mark.parametrize("tiling", TILINGS)
@pytest.mark.parametrize(
    ("repeats", "head_dim", "value_dim", "window", "sinks"),
    [(4, 128, 128, 0, False), (8, 128, 128, 0, False), (1, 192, 128, 0, False), (8, 64, 64, 128, True)],
    ids=["mixtral", "qwen3-30b", "deepseek-v2", "gpt-oss"],
)
@pytest.mark.parametrize("splits", [1, 16])
def test_attention_compiles_for_the_shapes_of_real_models(
    tiling: Any, repeats: int, head_dim: int, value_dim: int, window: int, sinks: bool, splits: int, tmp_path: Path
) -> None:
    if head_dim > 128 and tiling.num_stages > 3:
        pytest.skip("the trial leaves out what does not fit")
    types = dict.fromkeys(("query", "key", "value", "sinks", "out"), "*bf16")
    types |= dict.fromkeys(("peak", "total"), "*fp32") | dict.fromkeys(("table", "context"), "*i32")
    types["out"] = "*bf16" if splits == 1 else "*fp32"
    constants = {
        "NUM_GROUPS": 4,
        "R": repeats,
        "D": head_dim,
        "V": value_dim,
        "PADDED_R": padded(repeats),
        "PADDED_D": padded(head_dim),
        "PADDED_V": padded(value_dim),
        "PAGE": 16,
        "N": tiling.block_keys,
        "IS_SPLIT": splits > 1,
        "SCALE": 0.1,
        "SOFTCAP": 0.0,
        "WINDOW": window,
        "HAS_SINKS": sinks,
    }
    options = {"num_warps": tiling.num_warps, "num_stages": tiling.num_stages}
    compiled(programs.attend_split, types, constants, tmp_path, **options)


def test_joining_compiles(tmp_path: Path) -> None:
    types = dict.fromkeys(("parts", "peak", "total"), "*fp32") | {"sinks": "*bf16", "out": "*bf16"}
    constants = {"NUM_HEADS": 32, "V": 128, "PADDED_V": 128, "PADDED_S": 64, "BLOCK_S": 16}
    compiled(programs.join_splits, types, constants | {"HAS_SINKS": True}, tmp_path)


@pytest.mark.parametrize("tiling", EXPERT_TILINGS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("rows", [16, 64])
@pytest.mark.parametrize("contiguous", ["depth_stride", "col_stride"])
def test_experts_compile_for_the_shapes_of_real_models(
    tiling: Any, gated: bool, rows: int, contiguous: str, tmp_path: Path
) -> None:
    if gated and contiguous == "col_stride":
        pytest.skip("no model of this layout has a plain SiLU")
    types = dict.fromkeys(("x", "weight", "bias", "factor"), "*bf16")
    types |= {"out": "*bf16" if gated else "*fp32", "index": "*i64"}
    constants = {
        "NUM_EXPERTS": 128,
        "TOP_K": 8,
        "BY_PICK": rows == 16,
        "GATED": gated,
        "HAS_BIAS": not gated,
        "HAS_FACTOR": not gated,
        "EVEN": True,
        "P": 16 if rows == 16 else 128,
        "M": rows,
        "N": tiling.most_columns,
        "K": tiling.depth,
        contiguous: 1,
    }
    options = {"num_warps": tiling.num_warps, "num_stages": tiling.num_stages}
    compiled(programs.expert_linear, types, constants, tmp_path, **options)


def test_the_activation_of_gpt_oss_compiles(tmp_path: Path) -> None:
    constants = {"ALPHA": 1.702, "LIMIT": 7.0, "BLOCK": 1024}
    compiled(programs.gate_pairs, {"x": "*bf16", "out": "*bf16"}, constants, tmp_path)


def test_summing_picks_compiles(tmp_path: Path) -> None:
    types = {"parts": "*fp32", "index": "*i64", "out": "*bf16"}
    compiled(programs.sum_picks, types, {"NUM_EXPERTS": 128, "TOP_K": 8, "BLOCK": 1024}, tmp_path)


@pytest.mark.parametrize("second", [64, 0])
def test_rotary_positions_compile(second: int, tmp_path: Path) -> None:
    types = dict.fromkeys(("query", "key", "cos", "sin", "query_out", "key_out"), "*bf16")
    constants = {"NUM_HEADS": 32, "NUM_GROUPS": 4, "HALF": 64, "SECOND": second, "R": 8, "C": 64}
    compiled(programs.rotate, types, constants, tmp_path)
