"""Measurements by others of the same models, to stand beside ours. Facts, each with its source."""

from __future__ import annotations

from dataclasses import dataclass

ML_ENERGY = "ML.ENERGY Leaderboard v3.0 (December 2025), text conversation, https://ml.energy/leaderboard"
VLLM_RECIPE = "vLLM with Qwen3-30B-A3B, 2,048 tokens in and 1,024 out, 10 in flight, one H100"


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """One model as somebody else measured it.

    Attributes:
        model: our name of it in the workload.
        title: for people.
        in_flight: requests.
        output_tokens_per_s: of the whole card.
        energy_j_per_output_token: of the card, or None.
        source: who.
    """

    model: str
    title: str
    in_flight: int
    output_tokens_per_s: float
    energy_j_per_output_token: float | None
    source: str


# One H100 (3.35 TB/s by its datasheet), bfloat16.
QWEN3 = (
    Elsewhere(
        model="dense-8b", title="dense 8 B", in_flight=8, output_tokens_per_s=962,
        energy_j_per_output_token=0.444, source=ML_ENERGY,
    ),
    Elsewhere(
        model="dense-14b", title="dense 14 B", in_flight=8, output_tokens_per_s=627,
        energy_j_per_output_token=0.706, source=ML_ENERGY,
    ),
    Elsewhere(
        model="moe", title="Qwen3-30B-A3B", in_flight=8, output_tokens_per_s=611,
        energy_j_per_output_token=0.653, source=ML_ENERGY,
    ),
    Elsewhere(
        model="dense-32b", title="dense 32 B", in_flight=8, output_tokens_per_s=312,
        energy_j_per_output_token=1.726, source=ML_ENERGY,
    ),
)  # fmt: skip
VLLM_QWEN3 = Elsewhere(
    model="moe", title="Qwen3-30B-A3B", in_flight=10, output_tokens_per_s=739.8,
    energy_j_per_output_token=None, source=VLLM_RECIPE,
)  # fmt: skip
H100_BYTES_PER_S = 3.35e12
H200_BYTES_PER_S = 4.8e12
