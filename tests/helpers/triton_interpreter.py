"""Triton's interpreter on the CPU, for the tests of kernels: run them in their own process with ``TRITON_INTERPRET=1``.

Triton 3.6 turns one-element arrays into loop bounds by ``int(array)``, which numpy 2.4 refuses. ``mend`` reads the
element instead.
"""

from __future__ import annotations

from typing import Any


def mend() -> None:
    """Let loops run over bounds that were computed on the "device"."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_read_the_element(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_and_read_the_element
