"""``make profile``: where netd's CPU time goes under a chosen load. Needs root and iperf3.

For each load: a fresh daemon, one guest, SECONDS of it; then throughput, CPU seconds, and the functions and lines that
took them. --how sample (the default) hardly disturbs what it measures; cprofile counts every call; perf, where it is
installed, sees the interpreter and the kernel but no Python function.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import linecache
import os
import pstats
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: this file would hide the standard library's profile, which cProfile needs

from bench import load, procs  # noqa: E402
from bench.programs import Attachment, Netd  # noqa: E402
from bench.rows import Table, Visit  # noqa: E402
from bench.sampled import BEGIN, END  # noqa: E402
from bench.world import HOST, OUTSIDE, BenchError, World, compiled, enter, inside, until  # noqa: E402

TOP = 25


def bulk_out(visit: Visit, network: Attachment, seconds: int) -> str:
    return rate(load.iperf(visit, network.guest, visit.world.outside, OUTSIDE, seconds=seconds))


def bulk_in(visit: Visit, network: Attachment, seconds: int) -> str:
    return rate(load.iperf(visit, network.guest, visit.world.outside, OUTSIDE, seconds=seconds, reverse=True))


def published(visit: Visit, network: Attachment, seconds: int) -> str:
    return rate(load.iperf(visit, visit.world.host, network.guest, "127.0.0.1", 7201, seconds))


def udp(visit: Visit, network: Attachment, seconds: int) -> str:
    got = load.iperf(visit, network.guest, visit.world.outside, OUTSIDE, seconds=seconds, udp=(1400, 0))
    return f"{rate(got)}, {got.loss:.0%} lost"


def rr(visit: Visit, network: Attachment, seconds: int) -> str:
    with load.pump_server(visit.world.outside, "echo", load.ECHO):
        got = load.rr(visit, network.guest, OUTSIDE, load.ECHO, seconds)
    return f"{got['rate']:.0f} round trips/s, p50 {got['p50'] * 1e6:.0f} µs, p99 {got['p99'] * 1e6:.0f} µs"


def connect(visit: Visit, network: Attachment, seconds: int) -> str:
    with load.pump_server(visit.world.outside, "greet", load.GREET):
        got = load.connects(visit, network.guest, OUTSIDE, load.GREET, seconds)
    return f"{got['rate']:.0f} connections/s, p50 {got['p50'] * 1e6:.0f} µs, slowest {got['max'] * 1e3:.1f} ms"


def connect_in(visit: Visit, network: Attachment, seconds: int) -> str:
    with load.pump_server(network.guest, "greet", load.GREET):
        got = load.connects(visit, visit.world.outside, HOST, 7203, seconds, clients=16)
    return f"{got['rate']:.0f} connections/s by 16 clients, slowest {got['max'] * 1e3:.1f} ms"


def connect_loopback(visit: Visit, network: Attachment, seconds: int) -> str:
    with load.pump_server(network.guest, "greet", load.GREET):
        got = load.connects(visit, visit.world.host, "127.0.0.1", 7203, seconds)
    return f"{got['rate']:.0f} connections/s, p50 {got['p50'] * 1e6:.0f} µs, slowest {got['max'] * 1e3:.1f} ms"


def rate(got: load.Transfer) -> str:
    return f"{got.bits_per_second / 1e9:.2f} Gbit/s"


LOADS: dict[str, Callable[[Visit, Attachment, int], str]] = {
    "bulk-out": bulk_out,
    "bulk-in": bulk_in,
    "published": published,
    "udp": udp,
    "rr": rr,
    "connect": connect,
    "connect-in": connect_in,
    "connect-loopback": connect_loopback,
}


@contextlib.contextmanager
def perf(visit: Visit, pids: list[int], out: Path) -> Iterator[None]:
    """perf record on the daemon for the length of the block."""
    argv = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "997", "-o", str(out), "-p", ",".join(map(str, pids))]
    process = visit.world.start(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until("perf record", lambda: out.exists() or process.poll() is not None)
    try:
        yield
    finally:
        process.send_signal(2)
        process.wait(10)


@contextlib.contextmanager
def wrapped(pid: int, out: Path) -> Iterator[None]:
    os.kill(pid, BEGIN)
    try:
        yield
    finally:
        os.kill(pid, END)
        until("the profile", out.with_suffix(".done").exists, 30)


def short(path: str) -> str:
    """A path as a reader of this tree knows it."""
    for marker in ("/netd/", "/site-packages/", "/python3"):
        if marker in path:
            return path[path.rindex(marker) + 1 :]
    return path


def print_samples(out: Path, tree: Path) -> None:
    data = json.loads(out.read_text())
    total = sum(n for *_, n in data["lines"]) or 1
    itself: Counter[tuple[str, str]] = Counter()
    rooms: Counter[str] = Counter()
    for path, function, _, n in data["lines"]:
        itself[path, function] += n
        match = re.search(r"/netd/(\w+)(?:/|\.py)", path)
        rooms[match[1] if match else "(outside netd: the loop, the library)"] += n
    below = {(path, function): n for path, function, n in data["below"]}
    print(f"{total} samples\n\n  by room")
    for room, n in rooms.most_common():
        print(f"  {n / total:6.1%}  {room}")
    print("\n    self  with callees  function")
    for key, n in itself.most_common(TOP):
        print(f"  {n / total:6.1%}  {below.get(key, n) / total:12.1%}  {short(key[0])} {key[1]}")
    print("\n    self  line")
    for path, _, line, n in sorted(data["lines"], key=lambda entry: -entry[3])[:TOP]:
        print(f"  {n / total:6.1%}  {short(path)}:{line}  {linecache.getline(path, line).strip()[:90]}")


def print_calls(out: Path, tree: Path) -> None:
    pstats.Stats(str(out)).strip_dirs().sort_stats("tottime").print_stats(TOP)


def print_perf(out: Path, tree: Path) -> None:
    argv = ["perf", "report", "-i", str(out), "--stdio", "-q", "--percent-limit", "0.7", "--sort"]
    for sort in ("dso", "dso,symbol"):
        done = subprocess.run([*argv, sort], capture_output=True, text=True, timeout=60, check=False)
        print("\n".join(line for line in done.stdout.splitlines() if line.strip()), "\n")


def one(world: World, options: argparse.Namespace, name: str) -> None:
    out = world.folder("profile") / "out"
    wrapper = []
    if options.how != "perf":
        wrapper = [str(world.tree / "bench" / "sampled.py"), options.how, str(out), "netd", "serve"]
    program = Netd(world, wrapper)
    visit = Visit(world, program, Table(), False)
    with visit.started(), visit.attached(options.mtu, tcp=load.PUBLISHED) as network:
        assert program.daemon is not None
        pid = program.daemon.pid
        watch: Any = perf(visit, [pid], out) if options.how == "perf" else wrapped(pid, out)
        with watch:
            user, system = procs.cpu_seconds([pid])
            result = LOADS[name](visit, network, options.seconds)
            user_after, system_after = procs.cpu_seconds([pid])
        print(f"\n=== {name}, MTU {options.mtu}, {options.seconds} s: {result}")
        print(f"    the daemon used {user_after - user:.2f} s user, {system_after - system:.2f} s system\n")
    {"sample": print_samples, "cprofile": print_calls, "perf": print_perf}[options.how](out, world.tree)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench/profile.py", description=__doc__)
    parser.add_argument("loads", nargs="*", metavar="LOAD", help=f"of {', '.join(LOADS)}; all without one")
    parser.add_argument("--how", choices=("sample", "cprofile", "perf"), default="sample")
    parser.add_argument("--mtu", type=int, default=65520)
    parser.add_argument("--seconds", type=int, default=4)
    options = parser.parse_args(argv)
    for name in options.loads:
        if name not in LOADS:
            parser.error(f"no load {name!r}; there are {', '.join(LOADS)}")
    if not inside():
        return enter(Path(__file__).resolve(), list(argv))
    failed = 0
    with World(compiled() if options.how == "perf" else None) as world:  # the others look at Python
        for name in options.loads or LOADS:
            try:
                one(world, options, name)
            except (BenchError, OSError) as e:
                print(f"\n=== {name}: {e}", file=sys.stderr)
                failed = 1
            world.sweep()
    return failed


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
