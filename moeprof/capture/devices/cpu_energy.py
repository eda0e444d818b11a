"""Energy of the processor packages by RAPL, where the kernel lets us read it.

Its counters wrap after minutes to hours; they are unwrapped here.
"""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class CpuEnergy:
    """Running total of all packages in J since it was opened.

    Attributes:
        reason: why there is nothing to read, or None.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._packages = [zone for zone in sorted(root.glob("intel-rapl:*")) if _is_package(zone)]
        self._total_j = 0.0
        self.reason: str | None = None
        if not self._packages:
            self.reason = "no_rapl"
            return
        try:
            self._ranges_uj = [int((zone / "max_energy_range_uj").read_text()) for zone in self._packages]
            self._last_uj = self._counters_uj()
        except PermissionError:
            self.reason = "no_permission"
        except (OSError, ValueError):
            self.reason = "unreadable"

    @classmethod
    def open(cls) -> CpuEnergy:
        """This machine's."""
        return cls()

    def read_j(self) -> float | None:
        """J since opening; None where it cannot be read. A counter may wrap once between two reads, not twice."""
        if self.reason is not None:
            return None
        try:
            now = self._counters_uj()
        except (OSError, ValueError):
            self.reason = "unreadable"
            return None
        for value, last, limit in zip(now, self._last_uj, self._ranges_uj, strict=True):
            self._total_j += ((value - last) % (limit + 1)) * 1e-6
        self._last_uj = now
        return self._total_j

    def _counters_uj(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._packages]


def _is_package(zone: Path) -> bool:
    """True for a whole package; its parts (cores, memory) would be counted twice."""
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return False
