"""While one guest sends as fast as it can: the latency of a second guest, and of the management interface."""

from __future__ import annotations

from bench import load
from bench.measure_flows import MTU, US, round_trips
from bench.rows import LOWER, Block, Row, Visit
from bench.world import OUTSIDE, Place

LOADS = {
    "bulk": "the first sends bulk",
    "udp": "the first floods with UDP of 64 B",
    "syn": "the first floods with SYNs",
    "open": "the first opens 10000 connections",
}
RUNS = 4


def loaded(visit: Visit) -> None:
    world = visit.world
    with visit.started(), visit.attached(MTU, tcp={7201: load.IPERF}) as busy, visit.attached(MTU) as other:

        def management(key: str) -> None:
            if busy.api is not None:
                with visit.row(f"api_p50_{key}", f"api_p99_{key}"):
                    got = load.api(visit, busy.api, 1.0 if visit.quick else 3.0)
                    visit.put(f"api_p50_{key}", got["p50"] * 1e3)
                    visit.put(f"api_p99_{key}", got["p99"] * 1e3)
                    if got["failed"]:
                        visit.note(f"api_p99_{key}", f"{got['failed']} requests failed")

        with load.pump_server(world.outside, "echo", load.ECHO):
            alone = None
            with visit.row("neighbour_idle_p50", "neighbour_idle_p99"):
                alone = beside(visit, other.guest, "idle")
            management("idle")
            for key in LOADS:
                rows = [f"neighbour_{key}_{p}" for p in ("p50", "p99", "ratio")]
                apis = [f"api_{p}_{key}" for p in ("p50", "p99")] if busy.api is not None else []
                with visit.row(*rows, *apis), load.busy(busy.guest, world.outside, key):
                    with visit.row(*rows):
                        with_load = beside(visit, other.guest, key)
                        if alone:
                            visit.put(f"neighbour_{key}_ratio", with_load / alone)
                    management(key)


def beside(visit: Visit, client: Place, key: str) -> float:
    return round_trips(visit, client, OUTSIDE, load.ECHO, f"neighbour_{key}_p50", f"neighbour_{key}_p99", runs=RUNS)


def _rows() -> tuple[Row, ...]:
    rows = []
    loads = {"idle": "the first is idle", **LOADS}
    for key, title in loads.items():
        for p in ("p50", "p99"):
            rows.append(Row(f"neighbour_{key}_{p}", f"request/response of a second guest, {title}, {p}", US, LOWER))
        if key != "idle":
            name = f"request/response of a second guest, {title}: p50 against the idle one"
            rows.append(Row(f"neighbour_{key}_ratio", name, "times", LOWER))
    for key, title in loads.items():
        title = title.replace("the first", "the guest")
        for p in ("p50", "p99"):
            rows.append(Row(f"api_{p}_{key}", f"management request (list), {title}, {p}", "ms", LOWER))
    return tuple(rows)


BLOCKS = (Block("loaded", _rows(), loaded, 2, 3, 90),)
