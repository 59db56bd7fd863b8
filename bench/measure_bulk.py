"""Bulk TCP and UDP: throughput, CPU time per byte, loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bench import load, procs
from bench.rows import HIGHER, LOWER, Block, Row, Visit
from bench.world import HOST, OUTSIDE, Place

STREAMS = 8
LOSS = 0.005  # a rate counts as free of loss up to this share: schedulers of small machines lose a burst now and then
REACHED = 0.95  # of the offered rate


def tcp_rows(mtu: int, full_only: bool) -> tuple[Row, ...]:
    rate, cost = "Gbit/s", "CPU s/GB"
    many = f"{STREAMS} streams"
    rows = [
        Row(f"bulk_out_{mtu}", f"TCP guest → outside, MTU {mtu}", rate, HIGHER),
        Row(f"bulk_in_{mtu}", f"TCP outside → guest, MTU {mtu}", rate, HIGHER),
        Row(f"bulk_published_loopback_{mtu}", f"TCP host loopback → published port, MTU {mtu}", rate, HIGHER),
        Row(f"bulk_published_outside_{mtu}", f"TCP outside → published port, MTU {mtu}", rate, HIGHER),
        Row(f"cpu_out_{mtu}", f"CPU, guest → outside, MTU {mtu}", cost, LOWER),
        Row(f"cpu_in_{mtu}", f"CPU, outside → guest, MTU {mtu}", cost, LOWER),
        Row(f"bulk_out_many_{mtu}", f"TCP guest → outside, {many}, MTU {mtu}", rate, HIGHER, full_only=True),
        Row(f"bulk_in_many_{mtu}", f"TCP outside → guest, {many}, MTU {mtu}", rate, HIGHER, full_only=True),
    ]
    return tuple(dataclasses.replace(row, full_only=True) for row in rows) if full_only else tuple(rows)


def tcp(mtu: int) -> Callable[[Visit], None]:
    def measure(visit: Visit) -> None:
        seconds = 2 if visit.quick else 3
        with visit.started(), visit.attached(mtu, tcp=load.PUBLISHED) as network:
            guest, outside, host = network.guest, visit.world.outside, visit.world.host

            def one(key: str, cpu: str, client: Place, server: Place, to: str, port: int, **how: object) -> None:
                with visit.row(key, *([cpu] if cpu else [])):
                    before = sum(procs.cpu_seconds(network.pids()))
                    got = load.iperf(visit, client, server, to, port, seconds, **how)  # type: ignore[arg-type]
                    spent = sum(procs.cpu_seconds(network.pids())) - before
                    visit.put(f"{key}", got.bits_per_second / 1e9)
                    if cpu:
                        visit.put(cpu, spent / (got.bytes / 1e9))

            one(f"bulk_out_{mtu}", f"cpu_out_{mtu}", guest, outside, OUTSIDE, load.IPERF)
            one(f"bulk_in_{mtu}", f"cpu_in_{mtu}", guest, outside, OUTSIDE, load.IPERF, reverse=True)
            one(f"bulk_published_loopback_{mtu}", "", host, guest, "127.0.0.1", 7201)
            one(f"bulk_published_outside_{mtu}", "", outside, guest, HOST, 7201)
            if not visit.quick:
                one(f"bulk_out_many_{mtu}", "", guest, outside, OUTSIDE, load.IPERF, streams=STREAMS)
                one(f"bulk_in_many_{mtu}", "", guest, outside, OUTSIDE, load.IPERF, streams=STREAMS, reverse=True)

    return measure


def udp(visit: Visit) -> None:
    with visit.started(), visit.attached(1500) as network:
        guest, outside = network.guest, visit.world.outside

        def run(size: int, rate: float, reverse: bool) -> load.Transfer:
            how = {"seconds": 1, "reverse": reverse, "udp": (size, rate)}
            return load.iperf(visit, guest, outside, OUTSIDE, **how)  # type: ignore[arg-type]

        def clean(size: int, rate: float, reverse: bool) -> float:
            """The rate that arrived, or 0 where it was not free of loss, twice."""
            for _ in range(2):
                got = run(size, rate, reverse)
                if got.loss <= LOSS and got.bits_per_second >= REACHED * rate:
                    return got.bits_per_second
            return 0.0

        def search(size: int, start: float, reverse: bool = False) -> float:
            """Double the offered rate until datagrams are lost, then halve the interval."""
            best, low, high, rate = 0.0, 0.0, 0.0, start
            for _ in range(5 if visit.quick else 7):
                got = clean(size, rate, reverse)
                best = max(best, got)
                if got:
                    low = rate
                else:
                    high = rate
                rate = (low + high) / 2 if high else rate * 2
            return best

        with visit.row("udp_free_1400_out"):
            visit.put("udp_free_1400_out", search(1400, 400e6) / 1e6)
        with visit.row("udp_free_64_out"):
            visit.put("udp_free_64_out", search(64, 30e3 * 512) / 512 / 1e3)
        with visit.row("udp_flood_1400_out"):
            visit.put("udp_flood_1400_out", run(1400, 0, False).bits_per_second / 1e6)
        with visit.row("udp_flood_64_out"):
            visit.put("udp_flood_64_out", run(64, 0, False).bits_per_second / 512 / 1e3)
        if not visit.quick:
            with visit.row("udp_free_1400_in"):
                visit.put("udp_free_1400_in", search(1400, 400e6, reverse=True) / 1e6)


UDP_ROWS = (
    Row("udp_free_1400_out", "UDP 1400 B guest → outside, free of loss", "Mbit/s", HIGHER),
    Row("udp_free_64_out", "UDP 64 B guest → outside, free of loss", "1000/s", HIGHER),
    Row("udp_flood_1400_out", "UDP 1400 B guest → outside, what arrives of a flood", "Mbit/s", HIGHER),
    Row("udp_flood_64_out", "UDP 64 B guest → outside, what arrives of a flood", "1000/s", HIGHER),
    Row("udp_free_1400_in", "UDP 1400 B outside → guest, free of loss", "Mbit/s", HIGHER, full_only=True),
)

BLOCKS = (
    Block("bulk1500", tcp_rows(1500, False), tcp(1500), 3, 3, 60),
    Block("bulk9000", tcp_rows(9000, True), tcp(9000), 0, 3, 60),
    Block("bulk65520", tcp_rows(65520, False), tcp(65520), 3, 3, 60),
    Block("udp", UDP_ROWS, udp, 2, 2, 90),
)
