"""Two builds of netd side by side: is the second one faster? ``sudo python bench/pair.py OLD [NEW] [--way in] …``

Both daemons live at once, each with a guest, and transfer --gb in turn, so that what else happens on the machine meets
both: a difference of 5 % shows after some 20 pairs, where runs one after the other need ten times as many. For each the
median with the tenth and the ninetieth percentile; for the pairs the mean ratio with its standard error, of the rate
and of the daemon's CPU time, and the minor page faults a transfer. OLD and NEW are directories with ``netd`` in them,
compiled or not (``cp -r build/compiled/lib/python3*/site-packages/netd* OLD/``); NEW is what ``make compiled`` made.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its profile.py would hide the standard library's

from bench import load, procs  # noqa: E402
from bench.programs import Attachment, Netd  # noqa: E402
from bench.rows import Table, Visit  # noqa: E402
from bench.world import HOST, OUTSIDE, BenchError, World, compiled, enter, inside  # noqa: E402

WAYS = ("out", "in", "loopback", "published")
PORTS = (7201, 7202)  # of the host's, one each
LIMIT = 30  # seconds that a transfer may take


@dataclass
class Sample:
    """One transfer."""

    rate: float  # Gbit/s
    cpu: float  # s/GB
    faults: int


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/pair.py", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path, nargs="?")
    parser.add_argument("--way", choices=WAYS, default="in", help="out of the guest, in, or to a published port (in)")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--gb", type=float, default=1.0, help="per transfer (1)")
    parser.add_argument("--mtu", type=int, default=65520)
    parser.add_argument("--streams", type=int, default=1)
    options = parser.parse_args(argv)
    if options.pairs < 2 or options.gb <= 0 or options.streams < 1:
        parser.error("at least two pairs of something")
    return options


def transfer(visit: Visit, network: Attachment, port: int, options: argparse.Namespace) -> Sample:
    world, pids = visit.world, network.pids()
    client, server, address, at = network.guest, world.outside, OUTSIDE, load.IPERF
    if options.way in ("loopback", "published"):
        client = world.host if options.way == "loopback" else world.outside
        server, address, at = network.guest, "127.0.0.1" if options.way == "loopback" else HOST, port
    cpu, faults = sum(procs.cpu_seconds(pids)), procs.minor_faults(pids)
    size, reverse = round(options.gb * 1e9), options.way == "in"
    got = load.iperf(visit, client, server, address, at, LIMIT, reverse, options.streams, size=size)
    cpu = sum(procs.cpu_seconds(pids)) - cpu
    return Sample(got.bits_per_second / 1e9, cpu / (got.bytes / 1e9), procs.minor_faults(pids) - faults)


def ratio(news: Sequence[float], olds: Sequence[float]) -> str:
    """The geometric mean of the pairs' ratios, and its standard error."""
    logs = [math.log(new / old) for new, old in zip(news, olds, strict=True) if new > 0 and old > 0]
    if len(logs) < 2:
        return "nothing to compare"
    return f"{math.exp(statistics.mean(logs)):.3f} ± {statistics.stdev(logs) / math.sqrt(len(logs)):.3f}"


def summary(name: str, samples: Sequence[Sample]) -> str:
    def spread(values: list[float], digits: int) -> str:
        tenth = len(values) // 10
        low, middle, high = sorted(values)[tenth], statistics.median(values), sorted(values)[-1 - tenth]
        return f"{middle:.{digits}f} [{low:.{digits}f} … {high:.{digits}f}]"

    rate, cpu = spread([s.rate for s in samples], 2), spread([s.cpu for s in samples], 3)
    return f"{name}: {rate} Gbit/s, {cpu} CPU s/GB, {statistics.median(s.faults for s in samples):.0f} faults"


def main(argv: Sequence[str]) -> int:
    options = arguments(argv)
    if not inside():
        return enter(Path(__file__).resolve(), list(argv))
    try:
        new = options.new or compiled()
        if new is None:
            raise BenchError("there is no build/compiled: make compiled")
        samples: list[list[Sample]] = [[], []]
        with World(options.old.resolve()) as world, contextlib.ExitStack() as stack:
            sides = []
            for each, port in zip((world, world.with_netd_of(new.resolve())), PORTS, strict=True):
                visit = Visit(each, Netd(each), Table(), True)
                stack.enter_context(visit.started())
                network = stack.enter_context(visit.attached(options.mtu, tcp={port: load.IPERF}))
                sides.append((visit, network, port))
            for pair in range(options.pairs):
                for which in (0, 1) if pair % 2 else (1, 0):
                    samples[which].append(transfer(*sides[which], options))
    except BenchError as e:
        print(f"bench/pair.py: {e}", file=sys.stderr)
        return 1
    for name, side in zip(("old", "new"), samples, strict=True):
        print(summary(name, side))
    before, after = samples
    rate = ratio([sample.rate for sample in after], [sample.rate for sample in before])
    cpu = ratio([sample.cpu for sample in after], [sample.cpu for sample in before])
    print(f"new : old, {options.way}, MTU {options.mtu}, {options.pairs} pairs: rate {rate}, CPU time a byte {cpu}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
