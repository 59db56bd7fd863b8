"""What processes cost: CPU time and memory, from /proc (proc(5))."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on (the second is a name that may contain anything)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def tree(root: int) -> list[int]:
    """``root`` and all that descends from it, the dead left out."""
    children: dict[int, list[int]] = {}
    alive = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state, parent = _stat(int(entry))[:2]
            except OSError:
                continue  # ended meanwhile
            if state != "Z":
                alive.add(int(entry))
            children.setdefault(int(parent), []).append(int(entry))
    found, left = [], [root]
    while left:
        pid = left.pop()
        left += children.get(pid, [])
        if pid in alive:
            found.append(pid)
    return found


def minor_faults(pids: Iterable[int]) -> int:
    """Pages that the processes have touched for the first time, or anew (proc(5), minflt)."""
    faults = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # ended
            faults += int(_stat(pid)[7])
    return faults


def cpu_seconds(pids: Iterable[int]) -> tuple[float, float]:
    """User and system time of the processes and of their ended, awaited children, in seconds."""
    user = system = 0
    for pid in pids:
        try:
            fields = _stat(pid)
        except OSError:
            continue  # ended: its parent, when it is one of ours, has its time
        user += int(fields[11]) + int(fields[13])
        system += int(fields[12]) + int(fields[14])
    return user / TICK, system / TICK


def _field(path: str, name: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0


def pss(pids: Iterable[int]) -> float:
    """Proportional set size of the processes together, in MB (10^6 bytes)."""
    return sum(_field(f"/proc/{pid}/smaps_rollup", "Pss:") for pid in pids) * 1024 / 1e6


def peak_rss(pids: Iterable[int]) -> float:
    """The largest resident set each process ever had, added up, in MB."""
    return sum(_field(f"/proc/{pid}/status", "VmHWM:") for pid in pids) * 1024 / 1e6


def _threads(pids: Iterable[int]) -> list[int]:
    found: list[int] = []
    for pid in pids:
        with contextlib.suppress(OSError):  # ended
            found += map(int, os.listdir(f"/proc/{pid}/task"))
    return found


@contextlib.contextmanager
def pinned(pids: Iterable[int], cpu: int) -> Iterator[None]:
    """Every thread of the processes on one CPU for the length of the block."""
    before: dict[int, set[int]] = {}
    try:
        for thread in _threads(pids):
            with contextlib.suppress(OSError):
                before[thread] = os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, {cpu})
        yield
    finally:
        for thread, cpus in before.items():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, cpus)
