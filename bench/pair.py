"""Two builds of netd side by side: is the second one faster? ``sudo python bench/pair.py OLD [NEW] [--way in] …``

Both daemons live at once, each with a guest, and transfer --gb in turn (or connect, or exchange a byte, for half a
second), so that what else happens on the machine meets both: a difference of 5 % shows after some 20 pairs, where runs
one after the other need ten times as many. For each the median with the tenth and the ninetieth percentile; for the
pairs the mean ratio with its standard error, of the rate and of the daemon's CPU time, and the minor page faults a
sample. OLD and NEW are directories with ``netd`` in them, compiled or not
(``cp -r build/compiled/lib/python3*/site-packages/netd* OLD/``); NEW is what ``make compiled`` made. In place of OLD
``pasta`` or ``slirp4netns``: how far ahead of that is netd?
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
from bench.programs import Attachment, Netd, Program, installed  # noqa: E402
from bench.rows import Table, Visit  # noqa: E402
from bench.world import HOST, OUTSIDE, BenchError, World, compiled, enter, inside  # noqa: E402

WAYS = ("out", "in", "loopback", "published")
LOADS = {  # what is counted, the unit of its rate, of the CPU time each takes, and the server's port
    "bulk": ("a byte", "Gbit/s", "CPU s/GB", load.IPERF),
    "connect": ("a connection", "1/s", "CPU ms", load.GREET),
    "rr": ("a round trip", "1/s", "CPU ms", load.ECHO),
}
PEERS = ("pasta", "slirp4netns")
PORTS = (7201, 7202)  # of the host's, one each
LIMIT = 30  # seconds that a transfer may take
SECONDS = 0.5  # of connections or round trips


@dataclass
class Sample:
    """One transfer, or half a second of the other loads; units as in LOADS."""

    rate: float
    cpu: float
    faults: int


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/pair.py", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path, nargs="?")
    parser.add_argument("--load", choices=LOADS, default="bulk")
    parser.add_argument("--way", choices=WAYS, default="in", help="out of the guest, in, or to a published port (in)")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--gb", type=float, default=1.0, help="per transfer (1)")
    parser.add_argument("--mtu", type=int, default=65520)
    parser.add_argument("--streams", type=int, default=1, help="or clients that connect (1)")
    options = parser.parse_args(argv)
    if options.pairs < 2 or options.gb <= 0 or options.streams < 1:
        parser.error("at least two pairs of something")
    if options.load != "bulk" and options.way == "in":
        parser.error("who connects chooses the way: out, loopback or published")
    if options.load == "rr" and options.streams > 1:
        parser.error("round trips are made by one client")
    return options


def sample(visit: Visit, network: Attachment, port: int, options: argparse.Namespace) -> Sample:
    world, pids = visit.world, network.pids()
    inner = LOADS[options.load][3]
    client, server, address, at = network.guest, world.outside, OUTSIDE, inner
    if options.way in ("loopback", "published"):
        client = world.host if options.way == "loopback" else world.outside
        server, address, at = network.guest, "127.0.0.1" if options.way == "loopback" else HOST, port
    with contextlib.ExitStack() as stack:
        if options.load != "bulk":
            stack.enter_context(load.pump_server(server, "greet" if options.load == "connect" else "echo", inner))
        cpu, faults = sum(procs.cpu_seconds(pids)), procs.minor_faults(pids)
        if options.load == "bulk":
            size, reverse = round(options.gb * 1e9), options.way == "in"
            got = load.iperf(visit, client, server, address, at, LIMIT, reverse, options.streams, size=size)
            rate, count = got.bits_per_second / 1e9, got.bytes / 1e9
        else:
            if options.load == "connect":
                result = load.connects(visit, client, address, at, SECONDS, options.streams)
            else:
                result = load.rr(visit, client, address, at, SECONDS)
            if result.get("failed"):
                raise BenchError(f"{result['failed']} connections failed")
            rate, count = result["rate"], result["n"] / 1e3
        cpu = sum(procs.cpu_seconds(pids)) - cpu
        return Sample(rate, cpu / count, procs.minor_faults(pids) - faults)


def ratio(news: Sequence[float], olds: Sequence[float]) -> str:
    """The geometric mean of the pairs' ratios, and its standard error."""
    logs = [math.log(new / old) for new, old in zip(news, olds, strict=True) if new > 0 and old > 0]
    if len(logs) < 2:
        return "nothing to compare"
    return f"{math.exp(statistics.mean(logs)):.3f} ± {statistics.stdev(logs) / math.sqrt(len(logs)):.3f}"


def summary(name: str, samples: Sequence[Sample], what: str) -> str:
    def spread(values: list[float], digits: int) -> str:
        tenth = len(values) // 10
        low, middle, high = sorted(values)[tenth], statistics.median(values), sorted(values)[-1 - tenth]
        return f"{middle:.{digits}f} [{low:.{digits}f} … {high:.{digits}f}]"

    rate, cpu = spread([s.rate for s in samples], 2), spread([s.cpu for s in samples], 3)
    _, unit, cost, _ = LOADS[what]
    return f"{name}: {rate} {unit}, {cpu} {cost}, {statistics.median(s.faults for s in samples):.0f} faults"


def old(world: World, name: Path) -> Program:
    """What netd of ``world`` is compared with: an older one, or a peer. BenchError."""
    if str(name) not in PEERS:
        return Netd(world.with_netd_of(name.resolve()))
    found = [program for program in installed(world, [], netd_only=False)[0] if program.name == str(name)]
    if not found:
        raise BenchError(f"{name} is not installed")
    return found[0]


def main(argv: Sequence[str]) -> int:
    options = arguments(argv)
    if not inside():
        return enter(Path(__file__).resolve(), list(argv))
    try:
        new = options.new or compiled()
        if new is None:
            raise BenchError("there is no build/compiled: make compiled")
        samples: list[list[Sample]] = [[], []]
        with World(new.resolve()) as world, contextlib.ExitStack() as stack:
            sides = []
            for program, port in zip((old(world, options.old), Netd(world)), PORTS, strict=True):
                each = program.world
                visit = Visit(each, program, Table(), True)
                stack.enter_context(visit.started())
                network = stack.enter_context(visit.attached(options.mtu, tcp={port: LOADS[options.load][3]}))
                if options.load == "connect":  # where both ends close at once the ports run out: 12 ms a search
                    for place in (network.guest, each.host, each.outside):
                        place.run(["sh", "-c", "echo 0 > /proc/sys/net/ipv4/tcp_max_tw_buckets"])
                sides.append((visit, network, port))
            for pair in range(options.pairs):
                for which in (0, 1) if pair % 2 else (1, 0):
                    samples[which].append(sample(*sides[which], options))
    except BenchError as e:
        print(f"bench/pair.py: {e}", file=sys.stderr)
        return 1
    names = (str(options.old), "netd") if str(options.old) in PEERS else ("old", "new")
    for name, side in zip(names, samples, strict=True):
        print(summary(name, side, options.load))
    before, after = samples
    rate = ratio([each.rate for each in after], [each.rate for each in before])
    cpu = ratio([each.cpu for each in after], [each.cpu for each in before])
    what = f"{options.load} {options.way}, MTU {options.mtu}, {options.pairs} pairs"
    print(f"{names[1]} : {names[0]}, {what}: rate {rate}, CPU time {LOADS[options.load][0]} {cpu}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
