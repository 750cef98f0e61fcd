"""How many cores a process may use, and how many of them others leave free."""

import os
from types import SimpleNamespace

import pytest

from bincount import cores

TICKS = 100  # of each core, while the cores are watched


@pytest.mark.parametrize(
    ("limit", "threads", "expected"),
    [
        ("max 100000", "", 8),
        ("200000 100000", "", 2),
        ("150000 100000", "", 2),
        ("50000 100000", "", 1),
        ("", "", 8),
        ("max 100000", "3", 3),
        ("max 100000", "3,2", 3),
        ("max 100000", "0", 1),
        ("max 100000", "many", 8),
    ],
)
def test_no_more_cores_are_counted_than_the_process_may_use(monkeypatch, tmp_path, limit, threads, expected):
    path = tmp_path / "cpu.max"
    if limit:
        path.write_text(limit + "\n")
    monkeypatch.setattr(cores, "CPU_MAX", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)

    assert cores.num_cores() == expected


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine whose cores are busy, by so many percent each; this process does as much of that as `own` says."""

    def become(
        *percent: int, own: float = 0, usable: set[int] | None = None, nice: int = 0, limit: str = "max 100000"
    ) -> None:
        times, now = tmp_path / "stat", [0]
        limits = tmp_path / "cpu.max"
        limits.write_text(limit)

        def pass_time(_seconds: float = 0) -> None:
            lines = [
                f"cpu{core} {now[0] * busy} {now[0] * nice} 0 {now[0] * (TICKS - busy - nice)} 0 0 0 0 0 0"
                for core, busy in enumerate(percent)
            ]
            times.write_text("\n".join([f"cpu {now[0]} 0 0 0 0 0 0 0 0 0", *lines, "intr 12345", ""]))
            now[0] += 1

        pass_time()
        monkeypatch.setattr(cores, "CPU_TIMES", times)
        monkeypatch.setattr(cores, "CPU_MAX", limits)
        monkeypatch.setattr(cores, "SIBLINGS", str(tmp_path / "{}"))
        clock = SimpleNamespace(sleep=pass_time, monotonic=lambda: now[0], process_time=lambda: own * now[0])
        monkeypatch.setattr(cores, "time", clock)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: usable or set(range(len(percent))), raising=False)

    return become


@pytest.mark.parametrize(
    ("percent", "free"),
    [((0, 0), 2), ((100, 0), 1), ((60, 50), 1), ((20, 20), 2), ((100, 100), 1), ((100, 10, 0, 90), 2), ((100,), 1)],
)
def test_cores_that_other_processes_keep_busy_are_not_free(machine, percent, free):
    machine(*percent)
    assert cores.num_free.__wrapped__() == free


def test_cores_beyond_the_affinity_or_the_limit_of_a_container_are_not_free(machine):
    machine(0, 0, 0, 100, usable={0, 3})
    assert cores.num_free.__wrapped__() == 1
    machine(0, 0, 0, 0, limit="200000 100000")
    assert cores.num_free.__wrapped__() == 2


def test_a_niced_process_gives_way(machine):
    machine(0, 0, nice=90)
    assert cores.num_free.__wrapped__() == 2


def test_two_threads_of_a_core_are_one(machine, tmp_path):
    machine(0, 0, 0, 0)
    for core in range(4):
        (tmp_path / str(core)).write_text(f"{core % 2},{core % 2 + 2}\n")
    assert cores.num_free.__wrapped__() == 2


def test_what_this_process_does_itself_leaves_a_core_free(machine):
    machine(100, 0, own=1)
    assert cores.num_free.__wrapped__() == 2


def test_where_the_system_does_not_tell_all_cores_are_free(machine, monkeypatch, tmp_path):
    machine(100, 100)
    monkeypatch.setattr(cores, "CPU_TIMES", tmp_path / "none")
    assert cores.num_free.__wrapped__() == 2
