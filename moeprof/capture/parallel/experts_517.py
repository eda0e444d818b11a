"""Whole experts per rank on transformers that still cuts the router's output (before 5.21).

There the rule ``ep_router`` replaces picks by local numbers before any hook can see them. This rule leaves the picks as
they are, so that an experts module is called with the same global ids on all ranks, and hides the experts of others
inside of the module's own forward. That is what transformers does by itself from 5.21 on (``all_reduce``).
Suffix legend: T tokens, K top-k, d width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES, TensorParallelLayer

NAME = "moeprof_whole_experts"
SUMMED, CUT_ROUTER = "moe_tp_experts", "ep_router"  # transformers' names


class WholeExperts(TensorParallelLayer):  # type: ignore[misc]
    """An experts module of which each rank holds some experts, and sums what the ranks compute."""

    def should_use_local_tensors(self, module: Any) -> bool:
        """The kernels know plain tensors only."""
        return True

    def install_forward(self, module: Any, mesh: Any) -> Any:
        """Replace ``module.forward``; its weights are cut already, and ``num_experts`` is this rank's number."""
        inner, rank, group = module.forward, mesh.get_local_rank(), mesh.get_group()

        def forward(hidden_Td: torch.Tensor, picks_TK: torch.Tensor, weights_TK: torch.Tensor) -> torch.Tensor:
            local = module.num_experts
            elsewhere_TK = picks_TK // local != rank
            own_TK = torch.where(elsewhere_TK, local, picks_TK % local)
            with self.context_around_forward(module, mesh):
                output_Td: torch.Tensor = inner(hidden_Td, own_TK, weights_TK.masked_fill(elsewhere_TK, 0.0))
            dist.all_reduce(output_Td, group=group)
            return output_Td

        module.forward = forward
        return module


def expert_plan(tensor_plan: dict[str, str], expert_plan: dict[str, str]) -> dict[str, str]:
    """The rules of a model for whole experts: its own for them with ours in the middle, tensor rules for the rest."""
    ALL_PARALLEL_STYLES.register(NAME, WholeExperts())
    own = {rule: NAME if style == SUMMED else style for rule, style in expert_plan.items() if style != CUT_ROUTER}
    blocks = tuple(rule for rule, style in own.items() if style == NAME)
    rest = {
        rule: style
        for rule, style in tensor_plan.items()
        if not any(rule == block or rule.startswith(f"{block}.") for block in blocks)
    }
    return rest | own
