"""How much memory a process in a container may take, on made-up trees of control groups."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from moeprof.capture.devices.host_memory import HostRoom, host_room
from moeprof.capture.memory.predict import device_memory

GIB = 2**30
V1_NO_LIMIT = 9223372036854771712


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=40 * GIB))


def tree(root: Path, own: str, mounts: list[str], files: dict[str, object]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(own + "\n")
    (root / "proc/self/mountinfo").write_text("\n".join(mounts) + "\n")
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{value}\n")
    return root


V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "34 31 0:32 {root} /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory"


def test_without_limits_the_machine_says_what_is_free(tmp_path: Path) -> None:
    here = tree(tmp_path, "0::/user.slice/session.scope", [V2], {"sys/fs/cgroup/user.slice/memory.max": "max"})
    assert host_room(here) == HostRoom(total_bytes=64 * GIB, free_bytes=40 * GIB, is_limited=False)
    assert not host_room(tmp_path / "no-such-system").is_limited


def test_a_container_of_version_2_has_its_limit_less_what_is_used_but_old_file_pages(tmp_path: Path) -> None:
    here = tree(
        tmp_path, "0::/", [V2],
        {
            "sys/fs/cgroup/memory.max": 8 * GIB,
            "sys/fs/cgroup/memory.current": 5 * GIB,
            "sys/fs/cgroup/memory.stat": f"anon {2 * GIB}\nfile {3 * GIB}\ninactive_file {2 * GIB}\nactive_file {GIB}",
        },
    )  # fmt: skip
    assert host_room(here) == HostRoom(total_bytes=8 * GIB, free_bytes=5 * GIB, is_limited=True)


def test_of_nested_groups_the_tightest_binds_wherever_it_stands(tmp_path: Path) -> None:
    at = "sys/fs/cgroup/kubepods/pod1"
    here = tree(
        tmp_path, "0::/kubepods/pod1/box", [V2],
        {
            f"{at}/box/memory.max": 16 * GIB, f"{at}/box/memory.current": GIB,
            f"{at}/memory.max": 12 * GIB, f"{at}/memory.current": 10 * GIB,
            "sys/fs/cgroup/kubepods/memory.max": 32 * GIB, "sys/fs/cgroup/kubepods/memory.current": 11 * GIB,
        },
    )  # fmt: skip
    assert host_room(here) == HostRoom(total_bytes=12 * GIB, free_bytes=2 * GIB, is_limited=True)


def test_memory_high_slows_a_process_to_a_halt_so_it_binds_too(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.high": 3 * GIB, "sys/fs/cgroup/memory.current": 0}
    assert host_room(tree(tmp_path, "0::/", [V2], files)).total_bytes == 3 * GIB


@pytest.mark.parametrize(
    ("own", "mounted", "at"),
    [
        ("4:memory:/", "/", ""),  # a namespace of its own
        ("4:cpu,memory:/docker/abc", "/docker/abc", ""),  # without one: the group is what is mounted
        ("4:memory:/docker/abc", "/", "docker/abc/"),  # the host's whole tree
        ("4:memory:/../../other", "/", ""),  # seen from another namespace
    ],
)
def test_a_container_of_version_1_is_found_however_its_tree_is_mounted(
    tmp_path: Path, own: str, mounted: str, at: str
) -> None:
    place = f"sys/fs/cgroup/memory/{at}"
    files = {
        f"{place}memory.limit_in_bytes": 700 * 2**20, f"{place}memory.usage_in_bytes": 300 * 2**20,
        f"{place}memory.stat": f"inactive_file 1\ntotal_inactive_file {100 * 2**20}",
    }  # fmt: skip
    here = tree(tmp_path, own, [V1.format(root=mounted)], files)
    assert host_room(here) == HostRoom(total_bytes=700 * 2**20, free_bytes=500 * 2**20, is_limited=True)


def test_version_1_without_a_limit_has_a_huge_number_and_more_used_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    at = "sys/fs/cgroup/memory"
    files = {f"{at}/memory.limit_in_bytes": V1_NO_LIMIT, f"{at}/memory.usage_in_bytes": GIB}
    assert not host_room(tree(tmp_path / "none", "4:memory:/", [V1.format(root="/")], files)).is_limited
    files = {f"{at}/memory.limit_in_bytes": GIB, f"{at}/memory.usage_in_bytes": 2 * GIB}
    assert host_room(tree(tmp_path / "over", "4:memory:/", [V1.format(root="/")], files)).free_bytes == 0


def test_forecasts_ask_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    room = HostRoom(total_bytes=GIB, free_bytes=GIB // 2, is_limited=True)
    monkeypatch.setattr("moeprof.capture.memory.predict.host_room", lambda: room)
    memory = device_memory("cpu", None)
    assert (memory.total_bytes, memory.free_bytes, memory.is_limited) == (GIB, GIB // 2, True)
