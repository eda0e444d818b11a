"""The code of a recipe in docs/recipes: what a reader is told to type is what the tests run.

A fenced block whose info string names a file (```` ```python moeprof/x/y.py ````) is that file; other blocks are rows,
commands and explanations.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "docs" / "recipes"
_FENCE = re.compile(r"^```(\w+)[ \t]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(recipe: str) -> list[tuple[str, str, str]]:
    """Language, file name (or an empty text) and code of every fenced block of ``docs/recipes/<recipe>.md``."""
    text = (RECIPES / f"{recipe}.md").read_text(encoding="utf-8")
    return [(language, file.strip(), code) for language, file, code in _FENCE.findall(text)]


def recipe_module(recipe: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The recipe's one Python file, written into ``folder`` and imported as ``recipe_<name>``; forgotten afterwards."""
    (code,) = [code for language, file, code in blocks(recipe) if language == "python" and file]
    name = f"recipe_{recipe.replace('-', '_')}"
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, module)
    return module
