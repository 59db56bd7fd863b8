"""``make soak``: many gigabytes through netd each way while frames get lost, whole and without a standstill.

A guest whose TAP loses frames at random in both directions (nft, as tests/lab.py does it) exchanges GB gigabytes with
the outside host, once out and once in per share of loss. For each transfer: seconds, Gbit/s, the digest at both ends,
the longest pause of the receiver, and netd's counters. The exit status is 1 where the ends differ, or where nothing
moved for 15 seconds; then the sockets of both ends are printed, too. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its profile.py would hide the standard library's

from bench.load import HOLD as PORT  # noqa: E402
from bench.programs import Attachment, Netd  # noqa: E402
from bench.rows import Table, Visit  # noqa: E402
from bench.world import OUTSIDE, OUTSIDE6, PYTHON, BenchError, Place, World, as_user, compiled, enter, inside, until  # noqa: E402

COUNTERS = ("tcp_retransmits", "tcp_timeouts", "tcp_held", "tcp_acks_repeated", "drop_link", "drop_tcp_out_of_order")
SLOWEST = 5e6  # bytes/s: what takes longer than at this rate is ended
WAYS = ("out", "in")
# Of the guest's kernel (nstat(8)): segments sent again, time-outs, and probes of what may be lost at a flight's end.
GUEST = ("TcpRetransSegs", "TcpExtTCPTimeouts", "TcpExtTCPLossProbes")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/soak.py", description=__doc__)
    parser.add_argument("--gb", type=float, default=float(os.environ.get("GB") or 10), help="per transfer (10)")
    parser.add_argument("--loss", default=os.environ.get("LOSS") or "0 1 5", help="percent each way ('0 1 5')")
    parser.add_argument("--mtu", type=int, default=int(os.environ.get("MTU") or 1500))
    parser.add_argument("--only", default="", metavar="WAY:LOSS,…", help="of all these transfers, as in out:5,in:0")
    parser.add_argument("--ipv6", action="store_true", help="over IPv6")
    parser.add_argument("--capture", type=Path, metavar="FILE", help="tcpdump of the TAP, its first 96 bytes a frame")
    options = parser.parse_args(argv)
    every = [(way, int(loss)) for loss in options.loss.split() for way in WAYS]
    only = options.only.split(",")
    options.transfers = [(way, loss) for way, loss in every if not options.only or f"{way}:{loss}" in only]
    if not options.transfers:
        parser.error("nothing to do")
    return options


def lose(guest: Place, percent: int) -> None:
    """From now on; the sender is not told of it (NF_STOLEN, not a drop)."""
    guest.run(["sh", "-c", "nft delete table netdev loss 2>/dev/null || :"])
    if percent:
        rule = f"numgen random mod 100 < {percent}"
        into = f"chain into {{ type filter hook ingress device tap0 priority 0; {rule} drop; }}"
        out = f"chain out {{ type filter hook egress device tap0 priority 0; {rule} fwd to lo; }}"
        guest.run(["nft", f"table netdev loss {{\n{into}\n{out}\n}}"])


def counters(network: Attachment) -> dict[str, int]:
    """netd's, of the one network there is; it answers its owner only."""
    assert network.api is not None
    command = ["curl", "-sS", "--unix-socket", network.api[0], "http://netd/v1/networks"]
    found = json.loads(network.program.world.host.run(command, **as_user()))[0]["counters"]
    return {name: found[name] for name in COUNTERS}


def recovery(guest: Place) -> dict[str, int]:
    """How the guest's kernel has fought losses, all connections of its life together."""
    found = json.loads(guest.run(["nstat", "-asj"]))["kernel"]
    return {name: int(found.get(name, 0)) for name in GUEST}


def transfer(world: World, network: Attachment, way: str, size: int, address: str) -> list[dict[str, Any]]:
    """What the giver and the taker say; the guest connects."""
    guest, outside = network.guest, world.outside
    ends = str(world.tree / "bench" / "soak_ends.py")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    roles = ("give", "take") if way == "out" else ("take", "give")
    command = [PYTHON, "-I", "-S", ends]
    server = outside.start([*command, roles[1], address, str(PORT), str(size), "listen"], **pipes)
    until("the outside end", lambda: outside.listens(PORT))
    client = guest.start([*command, roles[0], address, str(PORT), str(size)], **pipes)
    says = {}
    deadline = time.monotonic() + 20 + size / SLOWEST
    try:
        for name, process in (("client", client), ("server", server)):
            assert process.stdout is not None
            line = process.stdout.readline()
            if line == "listening\n":
                line = process.stdout.readline()
            says[name] = json.loads(line or '{"wrong": "ended without a word"}')
        if any(end["wrong"] for end in says.values()):
            for place in (guest, outside):
                print(place.run(["ss", "-tinmoH"]))
    finally:
        for process in (client, server):
            world.end(process)
    if time.monotonic() > deadline:
        raise BenchError(f"slower than {SLOWEST / 1e6:g} MB/s")
    return [says["client"], says["server"]] if way == "out" else [says["server"], says["client"]]


def soak(world: World, network: Attachment, options: argparse.Namespace) -> bool:
    """All transfers; whether each was as it should be."""
    address = OUTSIDE6 if options.ipv6 else OUTSIDE
    well = True
    for way, loss in options.transfers:
        lose(network.guest, loss)
        before = counters(network) | recovery(network.guest)
        giver, taker = transfer(world, network, way, int(options.gb * 1e9), address)
        grown = {name: count - before[name] for name, count in (counters(network) | recovery(network.guest)).items()}
        same = giver.get("md5") == taker.get("md5") and not giver["wrong"] and not taker["wrong"]
        well &= same
        seconds = taker.get("seconds") or 1.0
        rate = taker.get("bytes", 0) * 8e-9 / seconds
        print(f"{way:3} {loss} %  {taker.get('bytes', 0)} bytes in {seconds:.1f} s, {rate:.2f} Gbit/s, longest pause"
              f" {taker.get('pause', 0.0) * 1e3:.0f} ms  {'equal' if same else 'NOT EQUAL'}")  # fmt: skip
        print(f"         md5 {giver.get('md5')} given, {taker.get('md5')} taken")
        print("         " + ", ".join(f"{name} {count}" for name, count in grown.items() if count), flush=True)
        for name, end in (("giver", giver), ("taker", taker)):
            if end["wrong"]:
                print(f"         {name}: {end['wrong']} after {end.get('bytes')} bytes", flush=True)
    return well


def main(argv: Sequence[str]) -> int:
    options = arguments(argv)
    if not inside():
        return enter(Path(__file__).resolve(), list(argv))
    with World(compiled()) as world:
        visit = Visit(world, Netd(world), Table(), False)
        with visit.started(), visit.attached(options.mtu, ipv6=options.ipv6) as network:
            if options.capture:
                argv = ["tcpdump", "-i", "tap0", "-s", "96", "-B", "65536", "-Z", "root", "-w", str(options.capture)]
                network.guest.start(argv, stderr=subprocess.DEVNULL)
            try:
                return 0 if soak(world, network, options) else 1
            except BenchError as e:
                print(f"soak: {e}", file=sys.stderr)
                return 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
