"""Small and quick: request/response, and connections one after the other."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench import load, procs
from bench.rows import HIGHER, LOWER, Block, Row, Visit
from bench.world import HOST, OUTSIDE, Place

MTU = 65520  # Podman's default
RUNS, RUN = 6, 0.3  # samples of request/response in one visit, and how long each is, in seconds
CPU = 0  # where everything is put when the scheduler is to have no say
US, RATE = "µs", "1/s"


def round_trips(
    visit: Visit, client: Place, address: str, port: int, p50: str, p99: str = "", runs: int = RUNS
) -> float:
    """Several short runs, each a sample of its own; returns their median.

    On which CPUs the three processes come to lie, and so whether they wait for each other, changes from run to run
    and not within one.
    """
    medians: list[float] = []
    for _ in range(runs):
        got = load.rr(visit, client, address, port, RUN)
        medians.append(got["p50"])
        visit.put(p50, got["p50"] * 1e6)
        if p99:
            visit.put(p99, got["p99"] * 1e6)
    return statistics.median(medians)


def pinned_round_trips(visit: Visit, client: Place, port: int, pids: Sequence[int], p50: str, runs: int = 3) -> float:
    """To OUTSIDE with client, server and program on one CPU: what the path costs, whatever the scheduler decides."""
    medians: list[float] = []
    with procs.pinned(pids, CPU):
        for _ in range(runs):
            medians.append(load.rr(visit, client, OUTSIDE, port, RUN, CPU)["p50"])
            visit.put(p50, medians[-1] * 1e6)
    return statistics.median(medians)


def request_response(visit: Visit) -> None:
    with visit.started(), visit.attached(MTU, tcp=load.PUBLISHED) as network:
        guest, outside, host = network.guest, visit.world.outside, visit.world.host
        with load.pump_server(outside, "echo", load.ECHO) as server:
            with visit.row("rr_out_p50", "rr_out_p99"):
                round_trips(visit, guest, OUTSIDE, load.ECHO, "rr_out_p50", "rr_out_p99")
            with visit.row("rr_one_cpu_p50"):
                pinned_round_trips(visit, guest, load.ECHO, [server, *network.pids()], "rr_one_cpu_p50")
        with load.pump_server(guest, "echo", load.ECHO):
            for key, client, address in (("loopback", host, "127.0.0.1"), ("outside", outside, HOST)):
                p50, p99 = f"rr_published_{key}_p50", f"rr_published_{key}_p99"
                with visit.row(p50, p99):
                    round_trips(visit, client, address, 7202, p50, p99)


RR_ROWS = (
    *(
        Row(f"rr_{key}_{p}", f"request/response 1 B, {title}, {p}", US, LOWER)
        for key, title in (
            ("out", "guest → outside"),
            ("published_loopback", "host loopback → published port"),
            ("published_outside", "outside → published port"),
        )
        for p in ("p50", "p99")
    ),
    Row("rr_one_cpu_p50", "request/response 1 B, guest → outside, all on one CPU, p50", US, LOWER),
)


def connect(visit: Visit) -> None:
    seconds = 0.5 if visit.quick else 1.0  # short and often: from second to second the rate moves by a third
    port = load.fresh_port()
    with visit.started(), visit.attached(MTU, tcp={port: load.GREET}) as network:
        guest, outside, host = network.guest, visit.world.outside, visit.world.host
        with load.pump_server(outside, "greet", port), visit.row("connect_out"):
            visit.put("connect_out", load.connects(visit, guest, OUTSIDE, port, seconds)["rate"])
        with load.pump_server(guest, "greet", load.GREET):
            with visit.row("connect_published"):
                visit.put("connect_published", load.connects(visit, host, "127.0.0.1", port, seconds)["rate"])
            with visit.row("connect_published_16", "connect_published_16_max"):
                got = load.connects(visit, outside, HOST, port, seconds, clients=16)
                visit.put("connect_published_16", got["rate"])
                visit.put("connect_published_16_max", got["max"] * 1e3)
                if got["failed"]:
                    visit.note("connect_published_16", f"{got['failed']} connections failed")


CONNECT_ROWS = (
    Row("connect_out", "connect, 1 B each way, close: guest → outside, 1 client", RATE, HIGHER),
    Row("connect_published", "connect, 1 B each way, close: loopback → published port, 1 client", RATE, HIGHER),
    Row("connect_published_16", "connect, 1 B each way, close: outside → published port, 16 clients", RATE, HIGHER),
    Row(
        "connect_published_16_max",
        "connect, 1 B each way, close: the slowest, outside → published port, 16 clients",
        "ms",
        LOWER,
    ),
)

BLOCKS = (
    Block("rr", RR_ROWS, request_response, 2, 5, 40),
    Block("connect", CONNECT_ROWS, connect, 8, 10, 60),
)
