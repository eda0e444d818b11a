"""Every kind of block is drawn by every renderer, in one place each."""

from __future__ import annotations

from types import ModuleType
from typing import get_args

import pytest

from moeprof.analysis.report.document import Block
from moeprof.render import markdown, terminal
from moeprof.render.html import page


@pytest.mark.parametrize("renderer", [markdown, terminal, page])
def test_every_kind_of_block_has_its_function(renderer: ModuleType) -> None:
    assert set(renderer.DRAW) == set(get_args(Block))
