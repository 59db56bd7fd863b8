"""Many and small: request/response, connections, idle connections, and the latency of others under load."""

from __future__ import annotations

import contextlib

from bench import load, procs
from bench.rows import HIGHER, LOWER, Block, Row, Visit
from bench.world import HOST, OUTSIDE, BenchError, Place

MTU = 65520  # Podman's default
IDLE = (0, 1000, 4000)
SHORT = 8000
RUNS = 4
US, RATE = "µs", "1/s"


def round_trips(visit: Visit, client: Place, address: str, port: int, p50: str, p99: str = "") -> None:
    """Several short runs, each a sample of its own: on which CPUs the three processes come to lie, and so whether they
    wait for each other, changes from run to run and not within one."""
    for _ in range(RUNS if visit.quick else 2 * RUNS):
        got = load.rr(visit, client, address, port, 0.3)
        visit.put(p50, got["p50"] * 1e6)
        if p99:
            visit.put(p99, got["p99"] * 1e6)


def request_response(visit: Visit) -> None:
    with visit.started(), visit.attached(MTU, tcp=load.PUBLISHED) as network:
        guest, outside, host = network.guest, visit.world.outside, visit.world.host
        with load.pump_server(outside, "echo", load.ECHO), visit.row("rr_out_p50", "rr_out_p99"):
            round_trips(visit, guest, OUTSIDE, load.ECHO, "rr_out_p50", "rr_out_p99")
        with load.pump_server(guest, "echo", load.ECHO):
            for key, client, address in (("loopback", host, "127.0.0.1"), ("outside", outside, HOST)):
                p50, p99 = f"rr_published_{key}_p50", f"rr_published_{key}_p99"
                with visit.row(p50, p99):
                    round_trips(visit, client, address, 7202, p50, p99)


RR_ROWS = tuple(
    Row(f"rr_{key}_{p}", f"request/response 1 B, {title}, {p}", US, LOWER)
    for key, title in (
        ("out", "guest → outside"),
        ("published_loopback", "host loopback → published port"),
        ("published_outside", "outside → published port"),
    )
    for p in ("p50", "p99")
)


def connect(visit: Visit) -> None:
    seconds = 1.0 if visit.quick else 2.0
    with visit.started(), visit.attached(MTU, tcp=load.PUBLISHED) as network:
        guest, outside, host = network.guest, visit.world.outside, visit.world.host
        with load.pump_server(outside, "greet", load.GREET), visit.row("connect_out"):
            visit.put("connect_out", load.connects(visit, guest, OUTSIDE, load.GREET, seconds)["rate"])
        with load.pump_server(guest, "greet", load.GREET):
            with visit.row("connect_published"):
                visit.put("connect_published", load.connects(visit, host, "127.0.0.1", 7203, seconds)["rate"])
            with visit.row("connect_published_16", "connect_published_16_max"):
                got = load.connects(visit, outside, HOST, 7203, seconds, clients=16)
                visit.put("connect_published_16", got["rate"])
                visit.put("connect_published_16_max", got["max"] * 1e3)
                if got["failed"]:
                    visit.note("connect_published_16", f"{got['failed']} connections failed")


CONNECT_ROWS = (
    Row("connect_out", "connect, 1 B each way, close: guest → outside, 1 client", RATE, HIGHER),
    Row("connect_published", "connect, 1 B each way, close: loopback → published port, 1 client", RATE, HIGHER),
    Row("connect_published_16", "connect, 1 B each way, close: outside → published port, 16 clients", RATE, HIGHER),
    Row("connect_published_16_max", "… the slowest of these connections", "ms", LOWER),
)


def idle(visit: Visit) -> None:
    seconds = 1 if visit.quick else 2
    outside = visit.world.outside
    with (
        visit.started(),
        visit.attached(MTU) as network,
        load.pump_server(outside, "hold", load.HOLD),
        load.pump_server(outside, "echo", load.ECHO),
        contextlib.ExitStack() as held,
    ):
        have = 0
        for count in IDLE:
            with visit.row(f"rr_idle_{count}", f"bulk_idle_{count}"):
                if count > have:
                    held.enter_context(load.held(visit, network.guest, count - have, 30))
                    have = count
                round_trips(visit, network.guest, OUTSIDE, load.ECHO, f"rr_idle_{count}")
                rate = load.iperf(visit, network.guest, outside, OUTSIDE, seconds=seconds).bits_per_second
                visit.put(f"bulk_idle_{count}", rate / 1e9)


IDLE_ROWS = (
    *(Row(f"rr_idle_{n}", f"request/response 1 B with {n} idle connections, p50", US, LOWER) for n in IDLE),
    *(Row(f"bulk_idle_{n}", f"TCP guest → outside with {n} idle connections", "Gbit/s", HIGHER) for n in IDLE),
)


def open_connections(visit: Visit) -> None:
    """Memory that open, idle connections of a guest take, beyond what the program had before."""
    with load.pump_server(visit.world.outside, "hold", load.HOLD):
        for count in (1000,) if visit.quick else (1000, 10000):
            with visit.row(f"pss_open_{count}"), visit.started(), visit.attached(MTU) as network:
                before = procs.pss(network.pids())
                with load.held(visit, network.guest, count, 60):
                    after = procs.pss(network.pids())
                visit.put(f"pss_open_{count}", after - before)


OPEN_ROWS = tuple(
    Row(f"pss_open_{n}", f"memory that {n} open connections add (PSS)", "MB", LOWER, full_only=n > 1000)
    for n in (1000, 10000)
)


def burst(visit: Visit) -> None:
    with (
        load.pump_server(visit.world.outside, "greet", load.GREET),
        visit.row("burst_peak"),
        visit.started(),
        visit.attached(MTU) as network,
    ):
        got = load.connects(visit, network.guest, OUTSIDE, load.GREET, 30.0, clients=4, count=SHORT)
        if got["n"] < SHORT:
            raise BenchError(f"only {got['n']} of {SHORT} connections succeeded in {got['seconds']:.0f} s")
        visit.put("burst_peak", procs.peak_rss(network.pids()))


BURST_ROWS = (Row("burst_peak", f"peak memory over {SHORT} short connections from 4 clients (RSS)", "MB", LOWER),)


def loaded(visit: Visit) -> None:
    """While one guest sends as fast as it can: the latency of a second guest, and of the management interface."""
    seconds = 2.0 if visit.quick else 4.0
    world = visit.world
    with visit.started(), visit.attached(MTU, tcp={7201: load.IPERF}) as busy, visit.attached(MTU) as other:
        with (
            visit.row("neighbour_rr_p50", "neighbour_rr_p99"),
            load.pump_server(world.outside, "echo", load.ECHO),
            load.busy(busy.guest, world.outside),
        ):
            got = load.rr(visit, other.guest, OUTSIDE, load.ECHO, seconds)
            visit.put("neighbour_rr_p50", got["p50"] * 1e6)
            visit.put("neighbour_rr_p99", got["p99"] * 1e6)
        if busy.api is None:
            return
        with visit.row("api_p50_loaded", "api_p99_loaded"), load.busy(busy.guest, world.outside):
            got = load.api(visit, busy.api, seconds)
            visit.put("api_p50_loaded", got["p50"] * 1e3)
            visit.put("api_p99_loaded", got["p99"] * 1e3)


LOADED_ROWS = (
    Row("neighbour_rr_p50", "request/response 1 B of a second guest while the first sends bulk, p50", US, LOWER),
    Row("neighbour_rr_p99", "request/response 1 B of a second guest while the first sends bulk, p99", US, LOWER),
    Row("api_p50_loaded", "management request (list) while a guest sends bulk, p50", "ms", LOWER),
    Row("api_p99_loaded", "management request (list) while a guest sends bulk, p99", "ms", LOWER),
)

BLOCKS = (
    Block("rr", RR_ROWS, request_response, 3, 5, 45),
    Block("connect", CONNECT_ROWS, connect, 3, 3, 75),
    Block("idle", IDLE_ROWS, idle, 2, 3, 120),
    Block("open", OPEN_ROWS, open_connections, 1, 1, 150),
    Block("burst", BURST_ROWS, burst, 1, 3, 60),
    Block("loaded", LOADED_ROWS, loaded, 2, 3, 45),
)
