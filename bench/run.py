"""``make bench``: netd, slirp4netns and pasta side by side, in namespaces of its own. Needs root and iperf3.

Writes RESULTS.md, latest.json, latest.svg and latest.png beside this file, or into --output; a run of chosen rows or
programs only prints, unless --output is given. QUICK=1 in the environment is --quick.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its profile.py would hide the standard library's

from bench import (  # noqa: E402
    load,
    measure_bulk,
    measure_cost,
    measure_flows,
    measure_idle,
    measure_ipv6,
    measure_loaded,
    measure_udp,
    report,
)
from bench.programs import Program, installed  # noqa: E402
from bench.rows import Block, Table, TimeLimit, Visit  # noqa: E402
from bench.world import OUTSIDE, BenchError, World, compiled, enter, inside  # noqa: E402

BLOCKS: tuple[Block, ...] = (
    *measure_bulk.BLOCKS,
    *measure_flows.BLOCKS,
    *measure_udp.BLOCKS,
    *measure_loaded.BLOCKS,
    *measure_idle.BLOCKS,
    *measure_ipv6.BLOCKS,
    *measure_cost.BLOCKS,
)
QUICK_MINUTES, FULL_MINUTES = 9.0, 23.5  # after that nothing is begun, and what runs is cut short
LEAST = 5.0  # seconds: a visit is not begun for less


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    names = [block.name for block in BLOCKS]
    parser = argparse.ArgumentParser(prog="bench/run.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", default=os.environ.get("QUICK", "0") not in ("", "0"))
    parser.add_argument("--rows", metavar="BLOCK,…", default="", help=f"only these: {', '.join(names)}")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of every block")
    parser.add_argument("--python", action="store_true", help="netd as Python, not compiled")
    parser.add_argument("--netd-only", action="store_true", help="without the peers")
    parser.add_argument("--peers-only", action="store_true", help="without netd")
    parser.add_argument("--peer", action="append", default=[], metavar="PATH", help="a slirp4netns or pasta to use")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write the results")
    options = parser.parse_args(argv)
    options.blocks = [b for b in BLOCKS if not options.rows or b.name in options.rows.split(",")]
    for name in filter(None, options.rows.split(",")):
        if name not in names:
            parser.error(f"no rows {name!r}; there are {', '.join(names)}")
    return options


def visit_once(block: Block, visit: Visit, limit: float) -> None:
    """One block on one program, within ``limit`` seconds; what goes wrong is noted in the rows."""

    def over(number: int, frame: FrameType | None) -> None:
        raise TimeLimit(f"not done within {limit:.0f} s")

    before = {key: len(values) for key, values in visit.table.samples.items()}
    signal.signal(signal.SIGALRM, over)
    # Again and again: tidying up after the first may hang on the same process. sweep() ends what is left.
    signal.setitimer(signal.ITIMER_REAL, limit, 5.0)
    try:
        try:
            block.measure(visit)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except (BenchError, OSError, subprocess.SubprocessError) as e:
        for row in block.rows:
            key = (row.key, visit.program.name)
            if len(visit.table.samples.get(key, ())) == before.get(key, 0) and visit.wants(row):
                visit.note(row.key, str(e) or type(e).__name__)
    if left := visit.world.sweep():
        print(f"  ended what was left: {', '.join(left)}", flush=True)


def measure(world: World, programs: Sequence[Program], options: argparse.Namespace, table: Table) -> float:
    """All blocks, rounds interleaved; returns the minutes it took.

    A later round of a block is left out where the time would not suffice for it; a first round that the time does not
    reach is noted in its rows.
    """
    begin = time.monotonic()
    end = begin + 60 * (QUICK_MINUTES if options.quick else FULL_MINUTES)
    rounds = {b.name: options.rounds or (b.quick_rounds if options.quick else b.full_rounds) for b in options.blocks}
    cost: dict[str, float] = {}  # seconds of a block's last round
    for turn in range(max(rounds.values())):
        for block in options.blocks:
            if turn >= rounds[block.name] or (options.quick and not block.quick_rounds):
                continue
            if turn and time.monotonic() + cost[block.name] > end:
                continue  # every row has its samples of the rounds before
            cost[block.name] = 0.0
            # The order turns, so that no program always follows the same one.
            for program in [programs[(turn + i) % len(programs)] for i in range(len(programs))]:
                since = time.monotonic()
                visit = Visit(world, program, table, options.quick)
                if (left := end - since) < LEAST:
                    for row in filter(visit.wants, block.rows):
                        visit.note(row.key, "not measured: the time of the whole run was up")
                    continue
                visit_once(block, visit, min(block.limit, left))
                took = time.monotonic() - since
                cost[block.name] += took
                print(f"round {turn + 1}  {block.name:12} {program.name:12} {took:5.1f} s", flush=True)
    return (time.monotonic() - begin) / 60


def kernel_only(world: World) -> float | None:
    """One stream from H to O, Gbit/s, or None where not even that works."""
    try:
        with world.outside.serving(["iperf3", "-s", "-1", "-p", str(load.IPERF)], load.IPERF):
            text = world.host.run(["iperf3", "-J", "-c", OUTSIDE, "-p", str(load.IPERF), "-t", "2"], 10)
        return float(json.loads(text)["end"]["sum_received"]["bits_per_second"]) / 1e9
    except (BenchError, KeyError, ValueError):
        return None


def main(argv: Sequence[str]) -> int:
    options = arguments(argv)
    if shutil.which("iperf3") is None:
        print("bench: needs iperf3 (Debian: apt-get install iperf3)", file=sys.stderr)
        return 1
    if not inside():
        return enter(Path(__file__).resolve(), list(argv))
    table = Table()
    try:
        site = None if options.python or options.peers_only else compiled()
    except BenchError as e:
        print(f"bench: {e}", file=sys.stderr)
        return 1
    with World(site) as world:
        try:
            programs, missing = installed(world, options.peer, options.netd_only)
        except BenchError as e:
            print(f"bench: {e}", file=sys.stderr)
            return 1
        programs = [p for p in programs if not (options.peers_only and p.name == "netd")]
        if not programs:
            print(f"bench: nothing to measure ({'; '.join(missing)})", file=sys.stderr)
            return 1
        about: dict[str, Any] = {
            "machine": report.machine(),
            "versions": {p.name: p.version() for p in programs},
            "date": report.today(),
            "pass": "quick" if options.quick else "full",
            "missing": missing,
            "kernel_only": kernel_only(world),
        }
        about["minutes"] = round(measure(world, programs, options, table), 1)
        about["congestion_control"] = sorted(table.congestion)
    rows = [row for block in options.blocks for row in block.rows if not (options.quick and row.full_only)]
    print(report.markdown(rows, table, about))
    partial = bool(options.rows or options.rounds or options.netd_only or options.peers_only or options.peer)
    folder = options.output or (None if partial else ROOT / "bench")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        report.write(folder, rows, table, about)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
