"""Where a model sends a fixed text: picks of about 2,048 teacher-forced tokens, one request at a time, untimed.

``<run>/<model>/launch-<l>/forced.npz``. Batches of one make it a fact of weights, kernels and text alone, so two
records, checkpoints, dtypes or code revisions can be set against each other token by token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_TOKENS = 2048


@dataclass(frozen=True, kw_only=True)
class ForcedPicks:
    """Legend: T tokens, L MoE layers, K the largest top-k, C classes.

    Attributes:
        picks_TLK: expert ids in the order in which the model gave them; -1 where a layer has fewer than K picks or a
            pick stands for no expert; ids from E on are identity experts.
        request_T: row of the token's request in the schedule.
        position_T: the token's place in its sequence.
        class_T: index into ``classes``.
        is_output_T: True for tokens of the forced output (decode), False for the prompt's (prefill).
        margin_TL: p_(k) - p_(k+1) of the gate's selection scores, NaN in layers whose scores do not give the picks.
        layers: names of the MoE layers.
        classes: names of request classes.
        tokens_sha256: of the ids of the whole text, so that only equal texts are compared; a recording that ran out of
            time has the text's too, and fewer tokens of it.
    """

    picks_TLK: npt.NDArray[np.integer[Any]]
    request_T: npt.NDArray[np.integer[Any]]
    position_T: npt.NDArray[np.integer[Any]]
    class_T: npt.NDArray[np.integer[Any]]
    is_output_T: npt.NDArray[np.bool_]
    margin_TL: npt.NDArray[np.floating[Any]]
    layers: tuple[str, ...]
    classes: tuple[str, ...]
    tokens_sha256: str

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.request_T)

    @property
    def num_requests(self) -> int:
        """Distinct requests."""
        return len(np.unique(self.request_T))
