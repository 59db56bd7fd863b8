"""Load on a network: iperf3 and pump.py, started where the caller says."""

from __future__ import annotations

import contextlib
import itertools
import json
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.rows import Visit
from bench.world import CONGESTION, OUTSIDE, BenchError, Place, as_user

IPERF, ECHO, GREET, HOLD = 5201, 5202, 5203, 5204
PUBLISHED = {7201: IPERF, 7202: ECHO, 7203: GREET}  # host port → guest port; below the ephemeral ones of world.py
_fresh = itertools.cycle(range(7300, 7400))
NOBODY = "10.91.0.77"  # of the outside host's link
BUFFER = 2 << 20  # of UDP sockets, where the machine allows it


@dataclass
class Transfer:
    """What iperf3 saw at the receiving end."""

    bits_per_second: float
    bytes: float
    seconds: float
    loss: float = 0.0  # of UDP datagrams, 0..1
    resent: int = 0  # segments that the sending kernel sent again


def _udp_buffer() -> int:
    """The largest socket buffer up to BUFFER that iperf3 can ask for without being refused."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        sizes = []
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            s.setsockopt(socket.SOL_SOCKET, option, BUFFER)
            sizes.append(s.getsockopt(socket.SOL_SOCKET, option))
    return min(BUFFER, *sizes)


def iperf(
    visit: Visit,
    client: Place,
    server: Place,
    address: str,
    port: int = IPERF,
    seconds: int = 2,  # iperf3 takes whole ones
    reverse: bool = False,
    streams: int = 1,
    udp: tuple[int, float] | None = None,
    size: int = 0,
) -> Transfer:
    """One transfer from ``client`` to ``server``, or with ``reverse`` the other way; of ``size`` bytes instead of
    ``seconds``, where that is given, which then is how long it may take.

    ``udp`` is the size of a datagram and the offered rate in bits/s, 0 for as many as it can.
    """
    length = ["-n", str(size // streams)] if size else ["-t", str(seconds)]
    argv = ["iperf3", "-J", "-c", address, "-p", str(port), *length, "--connect-timeout", "5000"]
    argv += ["-R"] if reverse else []
    if udp:
        argv += ["-u", "-l", str(udp[0]), "-b", f"{udp[1]:.0f}", "-w", str(_udp_buffer())]
    else:
        argv += ["-C", CONGESTION, "-P", str(streams)]
    with server.serving(["iperf3", "-s", "-1", "-p", str(IPERF)], IPERF):
        result = _json(client.run(["sh", "-c", f"{' '.join(argv)} || :"], seconds + 8), "iperf3")
    if "error" in result:
        raise BenchError(f"iperf3: {result['error']}")
    end = result["end"]
    try:
        if udp:
            sent = end["sum"]
            if not sent["packets"]:
                raise BenchError("iperf3: nothing arrived")
            loss = sent["lost_packets"] / sent["packets"]
            return Transfer(sent["bits_per_second"] * (1 - loss), sent["bytes"] * (1 - loss), sent["seconds"], loss)
        got = end["sum_received"]
        visit.table.congestion.add(end.get("sender_tcp_congestion", "unknown"))
        resent = end.get("sum_sent", {}).get("retransmits", 0)
        return Transfer(got["bits_per_second"], got["bytes"], got["seconds"], resent=resent)
    except KeyError as e:
        raise BenchError(f"iperf3: no {e} in its result") from None


def _json(text: str, who: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        raise BenchError(f"{who}: no result") from None
    assert isinstance(value, dict)
    return value


def rr(visit: Visit, client: Place, address: str, port: int, seconds: float, cpu: int | None = None) -> dict[str, Any]:
    """Requests and responses of one byte, from ``cpu`` where one is given; times in seconds."""
    where = [] if cpu is None else ["taskset", "-c", str(cpu)]
    return _json(client.run([*where, *visit.world.pump("rr", address, port, seconds, 1)], seconds + 8), "rr")


def fresh_port() -> int:
    """One to connect to that was not connected to within the last minute.

    Each connection leaves its client's port in TIME_WAIT for that long, for this address and port: of the 55 000 ports
    few are left after some rounds, and each further connect searches them for 12 ms.
    """
    return next(_fresh)


def connects(
    visit: Visit, client: Place, address: str, port: int, seconds: float, clients: int = 1, count: int = 10**9
) -> dict[str, Any]:
    """Connections of one byte, one after the other by each of ``clients``; times in seconds."""
    argv = visit.world.pump("connect", address, port, seconds, clients, count)
    result = _json(client.run(argv, seconds + 15), "connect")
    if not result["n"]:
        raise BenchError("connect: none succeeded")
    return result


@contextlib.contextmanager
def pump_server(place: Place, mode: str, port: int, address: str = "0.0.0.0") -> Iterator[int]:
    """One of pump.py's servers for the length of the block; its process."""
    with place.serving(place.world.pump(mode, address, port), port) as process:
        yield process.pid


@contextlib.contextmanager
def held(visit: Visit, client: Place, count: int, limit: float) -> Iterator[None]:
    """``count`` idle connections from ``client`` to HOLD outside, for the length of the block."""
    process = client.start(
        visit.world.pump("keep", OUTSIDE, HOLD, count),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        if not select.select([process.stdout], [], [], limit)[0]:
            raise BenchError(f"opening {count} connections took more than {limit:g} s")
        if not process.stdout.readline():
            raise BenchError(process.stderr.read().strip()[-200:] or "keep: ended")
        yield
    finally:
        visit.world.end(process)


@contextlib.contextmanager
def busy(client: Place, server: Place, what: str) -> Iterator[None]:
    """As much of ``what`` as ``client`` can send for the length of the block; BenchError where it ended before.

    "bulk": TCP. "udp": datagrams of 64 bytes. "syn": SYNs, to a host that refuses and to one that is not there. "open":
    10 000 connections, which stay.
    """
    send = ["iperf3", "-c", OUTSIDE, "-p", str(IPERF), "-t", "60", "--connect-timeout", "5000"]
    serve, port, pump = ["iperf3", "-s", "-1", "-p", str(IPERF)], IPERF, client.world.pump
    if what == "bulk":
        send += ["-C", CONGESTION]
    elif what == "udp":
        send += ["-u", "-b", "0", "-l", "64"]
    elif what == "syn":
        send = pump("syn", OUTSIDE, NOBODY)
    else:
        serve, port = pump("hold", "0.0.0.0", HOLD), HOLD
        send = pump("keep", OUTSIDE, HOLD, 10_000)
    with server.serving(serve, port):
        process = client.start(send, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(0.1 if what == "open" else 0.5)  # past slow start
            yield
            if process.poll() is not None:
                raise BenchError("the load beside it ended")
        finally:
            server.world.end(process)


def api(visit: Visit, socket_and_kind: tuple[str, str], seconds: float) -> dict[str, Any]:
    """Management requests, as the owner; times in seconds."""
    argv = visit.world.pump("api", *socket_and_kind, seconds)
    result = _json(visit.world.host.run(argv, seconds + 15, **as_user()), "api")
    if not result["n"]:
        raise BenchError("no management request was answered")
    return result
