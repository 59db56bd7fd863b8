"""UDP at two sizes: the highest rate that arrives whole, and what arrives of a flood, both ways."""

from __future__ import annotations

from collections.abc import Callable

from bench import load
from bench.rows import HIGHER, Block, Row, Visit
from bench.world import OUTSIDE

MTU = 1500
LOSS = 0.005  # a rate counts as free of loss up to this share: schedulers of small machines lose a burst now and then
REACHED = 0.95  # of the offered rate
START = {1400: 400e6, 64: 30e3 * 8 * 64}  # bit/s
WAYS = (("out", "guest → outside"), ("in", "outside → guest"))


def search(probe: Callable[[float], load.Transfer], start: float, steps: int) -> float:
    """The highest rate that arrived free of loss, 0 for none: doubled until datagrams are lost, then by halves.

    A rate has a second try, so that one hiccup of the machine does not decide.
    """
    best, low, high, rate = 0.0, 0.0, 0.0, start
    for _ in range(steps):
        for _ in range(2):
            got = probe(rate)
            if free := got.loss <= LOSS and got.bits_per_second >= REACHED * rate:
                best = max(best, got.bits_per_second)
                break
        low, high = (rate, high) if free else (low, rate)
        rate = (low + high) / 2 if high else rate * 2
    return best


def figure(size: int, bits_per_second: float) -> float:
    """In the row's unit: Mbit/s for large datagrams, thousands a second for small ones."""
    return bits_per_second / 1e6 if size > 1000 else bits_per_second / (8 * size) / 1e3


def udp(visit: Visit) -> None:
    with visit.started(), visit.attached(MTU) as network:

        def run(size: int, rate: float, way: str) -> load.Transfer:
            offered = (size, rate)
            reverse = way == "in"
            return load.iperf(
                visit, network.guest, visit.world.outside, OUTSIDE, seconds=1, reverse=reverse, udp=offered
            )

        def probe(size: int, way: str) -> Callable[[float], load.Transfer]:
            return lambda rate: run(size, rate, way)

        for row in UDP_ROWS:
            if not visit.wants(row):
                continue
            _, kind, size_text, way = row.key.split("_")
            size = int(size_text)
            with visit.row(row.key):
                if kind == "free":
                    got = search(probe(size, way), START[size], 4 if visit.quick else 5)
                else:
                    got = run(size, 0, way).bits_per_second
                visit.put(row.key, figure(size, got))


def _rows() -> tuple[Row, ...]:
    rows = []
    for kind, title in (("free", "free of loss"), ("flood", "what arrives of a flood")):
        for size, unit in ((1400, "Mbit/s"), (64, "1000/s")):
            for way, path in WAYS:
                full_only = way == "in" and (kind, size) != ("free", 1400)
                rows.append(Row(f"udp_{kind}_{size}_{way}", f"UDP {size} B {path}, {title}", unit, HIGHER, full_only))
    return tuple(rows)


UDP_ROWS = _rows()
BLOCKS = (Block("udp", UDP_ROWS, udp, 1, 2, 120),)
