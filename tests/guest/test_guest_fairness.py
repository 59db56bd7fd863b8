"""One guest at full load beside another: the other's round trips go on, and none is lost.

The load and the round trips are processes of their own (bench/pump.py), so that they do not share the daemon's
interpreter. The bounds are loose: a noisy machine must not fail, a starved guest must.
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guest.programs import outcome, start
from tests.lab import OUTSIDE, SILENT, World, aside, until
from tests.stage import Attach, Guest

PUMP = (sys.executable, "-I", "-S", str(Path(__file__).resolve().parents[2] / "bench" / "pump.py"))
ECHO, HOLD, SINK = 5202, 5204, 5205
TIMES, ENOUGH = 20, 0.005  # the median: so many times its idle value, or so many seconds
IDLE = 10_000

_SINK = f"""
import socket
s = socket.create_server(("{OUTSIDE}", {SINK})); print("listening", flush=True)
p, _ = s.accept(); b = bytearray(1 << 20)
while p.recv_into(b): pass
"""
_BULK = f"""
import socket
s = socket.create_connection(("{OUTSIDE}", {SINK})); b = bytes(1 << 20); print("started", flush=True)
while True: s.sendall(b)
"""
_UDP = f"""
import socket
s = socket.socket(type=socket.SOCK_DGRAM); s.connect(("{OUTSIDE}", 9)); print("started", flush=True)
while True:
    try: s.send(bytes(64))
    except OSError: pass
"""
# To a host that never answers, and to one that refuses.
_SYN = f"""
import random, socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
def total(b): return sum(struct.unpack("!%dH" % (len(b) // 2), b))
source = socket.inet_aton("10.0.2.100"); print("started", flush=True)
while True:
    for host in ("{SILENT}", "{OUTSIDE}"):
        ports = random.randrange(1024, 65536), random.randrange(10000, 65536)
        head = struct.pack("!HHIIBBHHH", *ports, random.getrandbits(32), 0, 80, 2, 65535, 0, 0)
        n = total(source + socket.inet_aton(host) + struct.pack("!HH", 6, 20) + head)
        while n >> 16: n = (n & 65535) + (n >> 16)
        try: s.sendto(head[:16] + struct.pack("!H", 65535 - n) + head[18:], (host, 0))
        except OSError: pass
"""


@contextlib.contextmanager
def running(place: Any, *command: str, says: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that has said its first line."""
    process = start(place, *command, stdin=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if says:
            line = process.stdout.readline()
            assert line.startswith(says), line + process.stdout.read()
        yield process
    finally:
        process.kill()
        process.communicate()


def python(script: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", script)


async def round_trips(guest: Guest, seconds: float = 1.0) -> dict[str, float]:
    """What pump.py says of them; each request has its answer, or it fails."""
    code, out = await outcome(start(guest, *PUMP, "rr", OUTSIDE, str(ECHO), str(seconds), "1"))
    assert code == 0, out
    said: dict[str, float] = json.loads(out)
    return said


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for the sockets of the daemon, which runs in this process, and for those of the load."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = IDLE + 1000  # of each process
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"RLIMIT_NOFILE is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("load", ["bulk", "udp", "syn", "idle"])
async def test_the_neighbour(world: World, attach: Attach, many_files: None, load: str) -> None:
    busy, other = await attach(), await attach()
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(world.outside, *PUMP, "echo", OUTSIDE, str(ECHO), says="listening"))
        alone = await round_trips(other)
        if load == "bulk":
            stack.enter_context(running(world.outside, *python(_SINK), says="listening"))
        elif load == "idle":
            stack.enter_context(running(world.outside, *PUMP, "hold", OUTSIDE, str(HOLD), says="listening"))
        if load == "idle":
            keep = start(busy, *PUMP, "keep", OUTSIDE, str(HOLD), str(IDLE), stdin=subprocess.PIPE)
            stack.callback(keep.communicate)
            stack.callback(keep.kill)
            assert keep.stdout is not None
            opening = await round_trips(other)  # while they come
            line = await aside(keep.stdout.readline)
            assert json.loads(line)["n"] == IDLE, line
            assert busy.network.status().flows["tcp"] == IDLE
            check(alone, opening)
        else:
            script = {"bulk": _BULK, "udp": _UDP, "syn": _SYN}[load]
            before = busy.counters()["rx_frames"]
            flood = start(busy, *python(script), stdin=subprocess.PIPE)
            stack.callback(flood.communicate)
            stack.callback(flood.kill)
            await until(lambda: busy.counters()["rx_frames"] > before + 1000, "the flood")
        check(alone, await round_trips(other, 2.0))
    counters = other.counters()
    assert counters["drop_link"] == counters["tcp_evicted"] == 0


def check(alone: dict[str, float], beside: dict[str, float]) -> None:
    assert beside["n"] > 100
    assert beside["p50"] < max(TIMES * alone["p50"], ENOUGH), (alone, beside)
