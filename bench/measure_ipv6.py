"""The same over IPv6: bulk both ways, and request/response."""

from __future__ import annotations

from collections.abc import Callable

from bench import load
from bench.measure_bulk import length
from bench.measure_flows import MTU, US, round_trips
from bench.rows import HIGHER, LOWER, Block, Row, Visit
from bench.world import OUTSIDE6


def bulk(mtu: int) -> Callable[[Visit], None]:
    def measure(visit: Visit) -> None:
        with visit.started(), visit.attached(mtu, ipv6=True) as network:
            for way in ("out", "in"):
                with visit.row(key := f"bulk6_{way}_{mtu}"):
                    got = load.iperf(
                        visit, network.guest, visit.world.outside, OUTSIDE6, seconds=length(visit), reverse=way == "in"
                    )
                    visit.put(key, got.bits_per_second / 1e9)
            if mtu != MTU:
                return
            with visit.row("rr6_out_p50"), load.pump_server(visit.world.outside, "echo", load.ECHO, "::"):
                round_trips(visit, network.guest, OUTSIDE6, load.ECHO, "rr6_out_p50")

    return measure


def rows(mtu: int) -> tuple[Row, ...]:
    return tuple(
        Row(f"bulk6_{way}_{mtu}", f"TCP over IPv6, {title}, MTU {mtu}", "Gbit/s", HIGHER)
        for way, title in (("out", "guest → outside"), ("in", "outside → guest"))
    )


RR6 = Row("rr6_out_p50", "request/response 1 B over IPv6, guest → outside, p50", US, LOWER)
BLOCKS = (
    Block("ipv6_1500", rows(1500), bulk(1500), 1, 2, 45),
    Block("ipv6_65520", (*rows(MTU), RR6), bulk(MTU), 1, 2, 45),
)
