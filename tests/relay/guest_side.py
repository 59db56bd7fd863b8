"""The guest's side as the relay sees it: a table and flows that note what they are told."""

from __future__ import annotations

import socket
from typing import Any

from netd.relay.sockaddr import packed
from netd.stack.counters import Counters
from netd.stack.ports import HostError

GUEST = {4: packed("10.0.2.100"), 6: packed("fd00::100")}
DEFAULT = 64 << 8  # hops


class Flow:
    """Of ``stack.flow.UdpFlow`` and ``EchoFlow`` what a host socket touches."""

    def __init__(self, table: Table, target: str, port: int = 0) -> None:
        self.table = table
        self.target = self.remote = packed(target)
        self.target_port = port
        self.guest = GUEST[6 if len(self.target) == 16 else 4]
        self.guest_port = 5000
        self.address: Any = None
        self.host: Any = None
        self.idle = 60.0
        self.deadline = 0.0
        self.got: list[bytes] = []
        self.marks: list[tuple[int, int]] = []  # (segment, tos)
        self.errors: list[HostError] = []
        self.replies: list[tuple[int, bytes]] = []
        self.refusals: list[tuple[int, HostError]] = []

    def to_guest(self, payload: Any, segment: Any = 0, tos: int = 0) -> None:
        if isinstance(payload, int):  # an echo reply
            self.replies.append((payload, bytes(segment)))
            return
        self.marks.append((segment, tos))
        step = segment or len(payload) or 1
        self.got += [bytes(payload[at : at + step]) for at in range(0, len(payload) or 1, step)]

    def refused(self, error: HostError, sequence: int = 0) -> None:
        self.errors.append(error)
        self.refusals.append((sequence, error))


class Table:
    """Of ``stack.udp.UdpTable`` the same."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.flows: list[Flow] = []

    def from_host(
        self,
        guest: bytes,
        guest_port: int,
        ip: bytes,
        port: int,
        host: Any,
        payload: Any,
        now: float,
        segment: int = 0,
        tos: int = 0,
    ) -> None:
        flow = self.from_forward(guest, guest_port, ip, port, host, now)
        host.adopt(flow)
        flow.to_guest(payload, segment, tos)

    def from_forward(self, guest: bytes, guest_port: int, ip: bytes, port: int, host: Any, now: float) -> Flow:
        family = socket.AF_INET if len(ip) == 4 else socket.AF_INET6
        flow = Flow(self, socket.inet_ntop(family, ip), port)
        flow.host = host
        self.flows.append(flow)
        return flow

    def expire(self, flow: Flow) -> None:
        flow.host.release(flow)
