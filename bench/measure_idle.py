"""Many connections: others beside them while they are idle, their memory, and the peak of a burst of short ones."""

from __future__ import annotations

import contextlib

from bench import load, procs
from bench.measure_flows import MTU, US, pinned_round_trips
from bench.rows import HIGHER, LOWER, Block, Row, Visit
from bench.world import OUTSIDE, BenchError

IDLE = (0, 1000, 4000)
OPEN = (1000, 10000)
SHORT = 8000


def idle(visit: Visit) -> None:
    seconds = 1 if visit.quick else 2
    outside = visit.world.outside
    with (
        visit.started(),
        visit.attached(MTU) as network,
        load.pump_server(outside, "hold", load.HOLD),
        load.pump_server(outside, "echo", load.ECHO) as server,
        contextlib.ExitStack() as held,
    ):
        have = 0
        for count in IDLE:
            with visit.row(f"rr_idle_{count}", f"bulk_idle_{count}"):
                if count > have:
                    held.enter_context(load.held(visit, network.guest, count - have, 20))
                    have = count
                # Placement alone changes a round trip threefold; only with that fixed do these rows compare.
                pinned_round_trips(visit, network.guest, load.ECHO, [server, *network.pids()], f"rr_idle_{count}", 4)
                rate = load.iperf(visit, network.guest, outside, OUTSIDE, seconds=seconds).bits_per_second
                visit.put(f"bulk_idle_{count}", rate / 1e9)


IDLE_ROWS = (
    *(Row(f"rr_idle_{n}", f"request/response 1 B with {n} idle connections, one CPU, p50", US, LOWER) for n in IDLE),
    *(Row(f"bulk_idle_{n}", f"TCP guest → outside with {n} idle connections", "Gbit/s", HIGHER) for n in IDLE),
)


def open_connections(visit: Visit) -> None:
    """Memory that a guest's open, idle connections take: what they add, and the whole with them."""
    with load.pump_server(visit.world.outside, "hold", load.HOLD):
        for count in OPEN:
            added, whole = f"pss_open_{count}", f"pss_with_{count}"
            with visit.row(added, whole), visit.started(), visit.attached(MTU) as network:
                before = procs.pss(network.pids())
                with load.held(visit, network.guest, count, 15 if visit.quick else 45):
                    after = procs.pss(network.pids())
                visit.put(added, after - before)
                visit.put(whole, after)


OPEN_ROWS = (
    *(Row(f"pss_open_{n}", f"memory that {n} open connections add (PSS)", "MB", LOWER) for n in OPEN),
    *(Row(f"pss_with_{n}", f"memory with 1 network and {n} open connections (PSS)", "MB", LOWER) for n in OPEN),
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

BLOCKS = (
    Block("idle", IDLE_ROWS, idle, 1, 2, 90),
    Block("open", OPEN_ROWS, open_connections, 1, 1, 90),
    Block("burst", BURST_ROWS, burst, 1, 2, 50),
)
