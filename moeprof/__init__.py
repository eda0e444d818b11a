"""moeprof: what does sparsity really buy you?

Two wings share one record on disk. ``capture`` runs models and writes the record (torch lives there and nowhere else);
``analysis`` and ``render`` only read it. ``core`` holds the nouns both share. The map: docs/architecture.md.
"""

from moeprof.api import Run, load, run
from moeprof.core import VERSION

__version__ = VERSION

__all__ = ["Run", "__version__", "load", "run"]
