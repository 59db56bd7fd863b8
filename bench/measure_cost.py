"""What a network costs at rest: memory for 0, 1, 10 and 50 of them, and the time to attach one."""

from __future__ import annotations

import contextlib
import subprocess
import time

from bench import procs
from bench.rows import LOWER, Block, Row, Visit
from bench.world import BenchError, as_user

MTU = 65520
COUNTS = (1, 10, 50)
PUBLISHED = 10  # networks with a published port, beyond the last of COUNTS


def memory(visit: Visit) -> None:
    with visit.started(), contextlib.ExitStack() as networks, visit.row(*(row.key for row in MEMORY_ROWS)):
        if visit.program.base_pids():
            visit.put("pss_0", _at_rest(visit, set()))
        pids: set[int] = set()
        pss: dict[int, float] = {}
        have = 0
        for count in COUNTS:
            for _ in range(count - have):
                pids.update(networks.enter_context(visit.attached(MTU)).pids())
            have = count
            pss[count] = _at_rest(visit, pids)
            visit.put(f"pss_{count}", pss[count])
        visit.put("pss_one_more", (pss[50] - pss[10]) * 1e3 / 40)
        for i in range(PUBLISHED):
            pids.update(networks.enter_context(visit.attached(MTU, tcp={8000 + i: 80})).pids())
        visit.put("pss_one_more_published", (_at_rest(visit, pids) - pss[50]) * 1e3 / PUBLISHED)


def _at_rest(visit: Visit, pids: set[int]) -> float:
    """PSS of the processes, and of a daemon, once none of them uses the CPU any more (their start is over)."""
    for _ in range(20):
        alive = {p for root in (*pids, *visit.program.base_pids()) for p in procs.tree(root)}
        before = procs.cpu_seconds(alive)
        time.sleep(0.25)
        if procs.cpu_seconds(alive) == before:
            break
    return procs.pss(alive)


MEMORY_ROWS = (
    Row("pss_0", "memory with no network (PSS; daemon and agent)", "MB", LOWER),
    *(Row(f"pss_{n}", f"memory with {n} network{'s' * (n > 1)} (PSS)", "MB", LOWER) for n in COUNTS),
    Row("pss_one_more", "memory of one more idle network (between 10 and 50)", "kB", LOWER),
    Row("pss_one_more_published", "memory of one more idle network with a published port (PSS)", "kB", LOWER),
)


def attach(visit: Visit) -> None:
    with visit.started(), visit.row("attach"):
        with visit.attached(MTU):
            pass  # a first one, so that files are in the page cache and a daemon is warm
        for _ in range(10):
            with visit.attached(MTU) as network:
                visit.put("attach", network.seconds * 1e3)


def probe(visit: Visit) -> None:
    """Podman runs the command with --help before each container to learn what it can do."""
    if not visit.program.has_api:
        return
    with visit.started(), visit.row("probe"):
        for _ in range(11):
            before = time.perf_counter()
            done = subprocess.run(
                [visit.program.slirp4netns, "--help"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=10,
                check=False,
                env={**visit.program.environment(), "_CONTAINERS_USERNS_CONFIGURED": "done"},
                **as_user(),
            )
            took = time.perf_counter() - before
            if done.returncode or b"--netns-type" not in done.stdout:
                raise BenchError(f"--help: exit status {done.returncode}")
            visit.put("probe", took * 1e3)


BLOCKS = (
    Block("memory", MEMORY_ROWS, memory, 1, 2, 90),
    Block("attach", (Row("attach", "attach: command started → ready", "ms", LOWER),), attach, 1, 3, 60),
    Block("probe", (Row("probe", "the command's --help, as Podman probes it", "ms", LOWER),), probe, 1, 3, 30),
)
