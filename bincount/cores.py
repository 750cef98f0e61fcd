"""The cores of this machine: how many a process may use, and how many of them others leave free."""

import os
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # microseconds of all cores, and in how many
CPU_TIMES = Path("/proc/stat")
SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
SECONDS = 1.0  # for which the cores are watched


def num_cores() -> int:
    """Return how many cores this process may use: by its affinity, its container's limit, and OMP_NUM_THREADS."""
    limits = [len(_usable()), num_of_container(), omp_num_threads()]
    return max(1, min(limit for limit in limits if limit is not None))


def omp_num_threads() -> int | None:
    """Return the number of threads that OMP_NUM_THREADS sets; None where it sets none."""
    with suppress(ValueError):
        return max(1, int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]))
    return None


def num_of_container() -> int | None:
    """Return how many cores the limit of this container comes to; None where it has none."""
    with suppress(OSError, ValueError):  # there is no such file, or it says "max"
        quota, period = map(int, CPU_MAX.read_text().split())
        return -(-quota // period)
    return None


@cache
def num_free() -> int:
    """Return how many threads of a network find a core of their own, at least one.

    The first call watches the cores for a second, and counts what other processes do. Later calls return the same, so
    that all that one process trains has one number. Two threads of one core count once, as torch counts them.
    """
    usable = _usable()
    cores = len({_siblings(core) for core in usable})
    free = int(cores - _busy(usable) + 0.5)  # at half a core's load, with and without it are about as fast
    return max(1, min(free, num_of_container() or cores))


def _usable() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _siblings(core: int) -> str:
    with suppress(OSError):
        return Path(SIBLINGS.format(core)).read_text()
    return str(core)


def _busy(cores: set[int]) -> float:
    """Return how many of these cores other processes keep busy; 0 where the system does not tell."""
    if not CPU_TIMES.exists():
        return 0.0
    before, own, began = _times(), time.process_time(), time.monotonic()
    time.sleep(SECONDS)
    own_share = (time.process_time() - own) / (time.monotonic() - began)
    after = _times()
    shares = []
    for core in cores & before.keys() & after.keys():
        busy, total = (late - early for late, early in zip(after[core], before[core], strict=True))
        shares.append(busy / max(total, 1))
    return max(0.0, sum(shares) - own_share)


def _times() -> dict[int, tuple[int, int]]:
    """Return the ticks in which each core was busy, and all its ticks. Niced processes give way: they count as idle."""
    found = {}
    for line in CPU_TIMES.read_text().splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, idle, waiting, *interrupts = map(int, ticks[:8])
            busy = user + system + sum(interrupts)
            found[int(name.removeprefix("cpu"))] = busy, busy + nice + idle + waiting
    return found
