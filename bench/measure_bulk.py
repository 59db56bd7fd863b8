"""Bulk TCP: throughput with one stream and with several, CPU time per byte, segments lost and sent again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench import load, procs
from bench.programs import Attachment
from bench.rows import HIGHER, LOWER, Block, Row, Visit
from bench.world import HOST, OUTSIDE, Place

STREAMS = 8
RATE = "Gbit/s"


def one_stream_rows(mtu: int, full_only: bool) -> tuple[Row, ...]:
    titles = (
        ("bulk_out", "TCP guest → outside", RATE, HIGHER),
        ("bulk_in", "TCP outside → guest", RATE, HIGHER),
        ("bulk_published_loopback", "TCP host loopback → published port", RATE, HIGHER),
        ("bulk_published_outside", "TCP outside → published port", RATE, HIGHER),
        ("cpu_out", "CPU, guest → outside", "CPU s/GB", LOWER),
        ("cpu_in", "CPU, outside → guest", "CPU s/GB", LOWER),
        ("resent_out", "segments the guest sent again, guest → outside", "1/GB", LOWER),
        ("late_in", "segments that reached the guest behind a gap, outside → guest", "1/GB", LOWER),
    )
    return tuple(Row(f"{key}_{mtu}", f"{title}, MTU {mtu}", unit, way, full_only) for key, title, unit, way in titles)


def length(visit: Visit) -> int:
    """Of a transfer, in seconds."""
    return 1 if visit.quick else 2


def one_stream(mtu: int) -> Callable[[Visit], None]:
    def measure(visit: Visit) -> None:
        with visit.started(), visit.attached(mtu, tcp=load.PUBLISHED) as network:
            guest, outside, host = network.guest, visit.world.outside, visit.world.host
            to_guest = (("loopback", host, "127.0.0.1"), ("outside", outside, HOST))
            with visit.row(f"bulk_out_{mtu}", f"cpu_out_{mtu}", f"resent_out_{mtu}"):
                got = transfer(visit, network, guest, outside, f"bulk_out_{mtu}", f"cpu_out_{mtu}")
                visit.put(f"resent_out_{mtu}", got.resent / (got.bytes / 1e9))
            with visit.row(f"bulk_in_{mtu}", f"cpu_in_{mtu}", f"late_in_{mtu}"):
                before = guest.counter("TCPOFOQueue")
                got = transfer(visit, network, guest, outside, f"bulk_in_{mtu}", f"cpu_in_{mtu}", reverse=True)
                visit.put(f"late_in_{mtu}", (guest.counter("TCPOFOQueue") - before) / (got.bytes / 1e9))
            for name, client, address in to_guest:
                with visit.row(key := f"bulk_published_{name}_{mtu}"):
                    visit.put(key, load.iperf(visit, client, guest, address, 7201, length(visit)).bits_per_second / 1e9)

    return measure


def transfer(
    visit: Visit, network: Attachment, client: Place, server: Place, rate: str, cpu: str, **how: Any
) -> load.Transfer:
    """A transfer to OUTSIDE, and the CPU time that the program spent on it."""
    before = sum(procs.cpu_seconds(network.pids()))
    got = load.iperf(visit, client, server, OUTSIDE, load.IPERF, length(visit), **how)
    spent = sum(procs.cpu_seconds(network.pids())) - before
    visit.put(rate, got.bits_per_second / 1e9)
    visit.put(cpu, spent / (got.bytes / 1e9))
    return got


def several_rows(mtu: int, full_only: bool) -> tuple[Row, ...]:
    return tuple(
        Row(f"bulk_{way}_many_{mtu}", f"TCP {title}, {STREAMS} streams, MTU {mtu}", RATE, HIGHER, full_only)
        for way, title in (("out", "guest → outside"), ("in", "outside → guest"))
    )


def several(mtu: int) -> Callable[[Visit], None]:
    def measure(visit: Visit) -> None:
        with visit.started(), visit.attached(mtu) as network:
            for way in ("out", "in"):
                how: dict[str, Any] = {"seconds": length(visit), "streams": STREAMS, "reverse": way == "in"}
                with visit.row(key := f"bulk_{way}_many_{mtu}"):
                    got = load.iperf(visit, network.guest, visit.world.outside, OUTSIDE, **how)
                    visit.put(key, got.bits_per_second / 1e9)

    return measure


BLOCKS = (
    Block("bulk1500", one_stream_rows(1500, False), one_stream(1500), 3, 4, 45),
    Block("bulk65520", one_stream_rows(65520, False), one_stream(65520), 4, 5, 45),
    Block("bulk9000", one_stream_rows(9000, True), one_stream(9000), 0, 2, 45),
    Block("streams1500", several_rows(1500, False), several(1500), 1, 3, 30),
    Block("streams65520", several_rows(65520, False), several(65520), 1, 3, 30),
    Block("streams9000", several_rows(9000, True), several(9000), 0, 2, 30),
)
