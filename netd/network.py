"""One attached namespace: link, stack, services and relay put together. This file is the architecture in small.

TAP fd ── link.tap ── stack.interface ── relay.host ── host sockets
                           │                 └──────── relay.resolver ── services.dns
                           └── relay.forwards ──────── host listeners
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final

from netd.blueprint import addressing_of, gateway_of, source_of
from netd.errors import PortInUse
from netd.inside import Inside
from netd.link.mirror import Link
from netd.link.pcap import Capture
from netd.link.tap import Tap
from netd.link.trace import Trace
from netd.netns.plan import OpenTap, SocketPlan
from netd.pace import Pace, Turns
from netd.relay import forwards, resolver
from netd.relay.autoports import AutoPorts
from netd.relay.host import HostNetwork
from netd.rules import AUTO, Rules
from netd.services import dns
from netd.specs import ForwardSpec, ForwardStatus, Lifeline, NetworkSpec, NetworkStatus
from netd.stack.interface import Interface
from netd.stack.limits import Limits

clock = time.monotonic
NETNS: Final = "netns"  # the key in ``held`` of the namespace itself
PCAP: Final = "pcap"  # the key in ``held`` of a file that frames are recorded in
PORT: Final = "port-"  # how the key of a published port's listeners begins, in the store
LAST_WORDS: Final = 0.05  # seconds for what a guest that ends has said; one that goes on talking holds up the others
_TICK: Final = 0.0005  # uvloop rounds to milliseconds: never to one that is too early, which would spin


class Network:
    """Owns the TAP, the lifeline's fd, the held fds and everything built on them, until ``close``."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        id_: str,
        spec: NetworkSpec,
        lifeline: Lifeline,
        held: dict[str, int],
        tap: OpenTap,
        netns_inode: int,
        name_servers: resolver.NameServers,
        on_lost: Callable[[Network], None],
        holder_of: Callable[[ForwardSpec], str],
        free_dead: Callable[[ForwardSpec], bool],
        open_sockets: Callable[[Network, Sequence[SocketPlan]], Awaitable[list[int | str]]],
        pace: Pace,
        limits: Limits | None = None,
        created: float = 0.0,
    ) -> None:
        self.id = id_
        self.name = spec.name or id_
        self.spec = spec
        self.lifeline = lifeline
        self.held = held
        self.tap = tap
        self.netns_inode = netns_inode
        self.created = created or time.time()
        self._forward_records: dict[int, str] = {}  # each forward as JSON, made once: there may be thousands
        self._unrecorded: dict[int, ForwardStatus] = {}
        self._loop = loop
        self._on_lost = on_lost
        self._holder_of = holder_of
        self._free_dead = free_dead
        self._pace = pace
        self._turns = turns = Turns(pace)
        self._postponed = self._lost = False
        self._timer: TimerHandle | None = None
        self._timer_at = float("inf")
        self._closed = False

        source = source_of(spec)
        self.on_trace: Callable[[str], None] = lambda line: None
        self._link: Link = Tap(tap.fd, tap.vnet_hdr)
        if PCAP in held:
            self._link = Capture(self._link, os.dup(held[PCAP]), resumed=created > 0)
        if spec.trace:
            self._link = Trace(self._link, self._trace)
        self._host = HostNetwork(loop, clock, self._flush, turns, source)
        addressing = addressing_of(spec, bytes.fromhex(tap.mac.replace(":", "")))
        self._interface = Interface(
            addressing,
            self._link.transmit,
            self._host,
            limits or Limits(),
            spec.mtu,
            tap.offload,
            secrets.token_bytes(16),
            uso=tap.uso,
            services=gateway_of(spec, addressing, name_servers.search()),
            without=frozenset(spec.without),
        )
        interface = self._interface
        self._host.pace = pace
        self._host.udp = interface.udp
        servers = resolver.Fixed(spec.dns_hosts) if spec.dns_hosts else name_servers
        self._host.resolver = resolver.Resolver(loop, dns, servers, interface.counters, source)
        self._forwards = forwards.Forwards(
            loop, clock, self._flush, self._host, interface.tcp, interface.udp, interface.addressing
        )
        if not spec.configure:
            self._forwards.address_of = interface.neighbors.address_of_guest
        self._inside = Inside(loop, clock, pace, self._flush, partial(open_sockets, self))
        self._auto = AutoPorts(loop)
        self.rules = Rules(
            self.name,
            self._auto,
            self._inside,
            self.add_forward,
            self.remove_forward,
            self.forwards,
            spec.host_lo_to_ns_lo,
        )
        if (spec.splice and NETNS in held) or spec.host_lo_to_ns_lo:
            self._forwards.inward = self._inside.inward
            self._forwards.to_loopback = spec.host_lo_to_ns_lo
        loop.add_reader(tap.fd, self._on_frames)
        interface.start(clock())
        self._flush()

    def _trace(self, line: str) -> None:
        self.on_trace(line)  # whoever that is by now

    # -- the loop's events ---------------------------------------------------------------------------------------

    def _on_frames(self) -> None:
        now = clock()
        turn = self._turns.begin(now)
        if not turn:
            # That the device has gone libuv tells once, and then never again (uv__poll_io).
            if not self._postponed:
                self._postponed = True
                self._loop.call_soon(self._on_postponed)
            return
        alive = self._link.receive(self._interface.from_guest, now, turn)
        self._flush()
        if not alive:
            self._lost = True
            self._loop.remove_reader(self.tap.fd)
            self._on_lost(self)

    def _on_postponed(self) -> None:
        self._postponed = False
        if not self._closed and not self._lost:
            self._on_frames()

    def _flush(self) -> None:
        """After every event: what others wait for, then pending ACKs, and the one timer where it must be."""
        interface = self._interface
        self._host.flush()
        interface.flush()
        self._pace.event(self._turns)
        at = interface.poll_at()
        if at < self._timer_at and not self._closed:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = at
            self._timer = self._loop.call_later(max(at - clock(), 0.0) + _TICK, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = float("inf")
        self._interface.poll(clock())
        self._flush()

    # -- port forwards -------------------------------------------------------------------------------------------

    def add_forward(self, spec: ForwardSpec, origin: str) -> ForwardStatus:
        """Publish ports now. InvalidSpec, PortInUse, PortPrivileged, AddressUnavailable, LimitReached."""
        try:
            try:
                status = self._forwards.add(spec, origin)
            except PortInUse:
                if not self._free_dead(spec):
                    raise
                status = self._forwards.add(spec, origin)
        except PortInUse as e:
            holder = self._holder_of(spec)
            if not holder:
                raise
            hint = f"netd port ls {holder}"
            raise PortInUse(f"{e} (held by network {holder})", holder, hint, e.port, e.reason) from None
        if origin != AUTO:
            self._unrecorded[status.id] = status
        return status

    def remove_forward(self, id_: int, close_connections: bool = False) -> None:
        """Unpublish. NoSuchPort."""
        self._forwards.remove(id_, close_connections)
        self._forward_records.pop(id_, None)
        self._unrecorded.pop(id_, None)

    def forward(self, id_: int) -> ForwardStatus:
        """One of them. NoSuchPort."""
        return self._forwards.get(id_)

    def forwards(self) -> list[ForwardStatus]:
        """All of them."""
        return self._forwards.all()

    def port_count(self) -> int:
        """How many host ports they are."""
        return self._forwards.port_count()

    # -- state ---------------------------------------------------------------------------------------------------

    def status(self) -> NetworkStatus:
        """As it stands."""
        counters = self._interface.counters.as_dict()
        counters["drop_link"] += self._link.drops
        counters |= self._inside.counters()
        return NetworkStatus(
            id=self.id,
            spec=self.spec,
            lifeline=self.lifeline.kind,
            lifeline_path=self.lifeline.path,
            netns_inode=self.netns_inode,
            created=self.created,
            mac=self.tap.mac,
            offload=self.tap.offload,
            forwards=tuple(self._forwards.all()),
            flows=self._interface.flow_counts(),
            counters=counters,
            loopback_ports=tuple(self._inside.outward.all()),
        )

    def stored_fds(self) -> dict[str, list[int]]:
        """The descriptors that must outlive this process, by name."""
        fds = {"tap": [self.tap.fd]}
        if self.lifeline.fd >= 0:
            fds["life"] = [self.lifeline.fd]
        for name, fd in self.held.items():
            fds[f"held-{name}"] = [fd]
        for forward in self._forwards:
            if forward.origin != AUTO and not forward.spec.best_effort:  # these can be bound anew, or left out
                fds[f"{PORT}{forward.id}"] = forward.fds
        return fds

    def forward_records(self) -> Iterable[str]:
        """Each published port as JSON, but for those that follow who listens."""
        for id_, status in self._unrecorded.items():
            spec = {name: getattr(status.spec, name) for name in status.spec.__slots__}
            self._forward_records[id_] = json.dumps({"id": id_, "origin": status.origin, "spec": spec})
        self._unrecorded.clear()
        return self._forward_records.values()

    def outlasts(self, key: str) -> bool:
        """True if a duplicate of that stored descriptor does nothing after ``close``: a TCP listener is shut down then,
        a UDP port is bound as long as there is one."""
        return key.startswith(PORT) and self._forwards.get(int(key.removeprefix(PORT))).spec.protocol == "tcp"

    def next_forward_id(self) -> int:
        """The number the next forward will have."""
        return self._forwards.next_id

    def restore_forward(self, id_: int, spec: ForwardSpec, origin: str, fds: list[int]) -> None:
        """Take over listeners that were kept over a restart; the order of ``fds`` does not matter.

        A port whose descriptor was lost is bound anew; on failure the forward is given up (PortInUse, …).
        """
        kept: dict[tuple[int, int], socket.socket] = {}  # by family and port
        for fd in fds:
            try:
                sock = socket.socket(fileno=fd)
            except OSError:
                os.close(fd)  # no socket at all
                continue
            kind = socket.SOCK_STREAM if spec.protocol == "tcp" else socket.SOCK_DGRAM
            key = (sock.family, -1)
            if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == kind:
                key = (sock.family, sock.getsockname()[1])
            if key[1] < 0 or key in kept:
                sock.close()
            else:
                kept[key] = sock
        try:
            self._unrecorded[id_] = self._forwards.add(spec, origin, kept, id_)
        finally:
            for sock in kept.values():  # of ports that were not asked for
                sock.close()

    def resume_forward_ids(self, next_id: int) -> None:
        """Numbers of forwards that are gone are not given out again."""
        self._forwards.next_id = max(self._forwards.next_id, next_id)

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self, kept: bool = False) -> None:
        """End the traffic; the TAP vanishes at once. The lifeline and held descriptors stay until ``release``.

        ``kept``: the network lives on in the service manager's store, only this process ends.
        """
        if self._closed:
            return
        if self.tap.fd >= 0:
            self._loop.remove_reader(self.tap.fd)
            self._last_words()
        self._closed = True
        self.rules.close()
        self._inside.close(kept)
        self._forwards.close(kept)
        self._interface.close(kept)
        self._host.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._link.close()

    def _last_words(self) -> None:
        """A FIN, datagrams: what the device's queue still has."""
        counters = self._interface.counters
        now = clock()
        until = now + LAST_WORDS
        more = True
        while more and now < until:
            before = counters.rx_frames
            alive = self._link.receive(self._interface.from_guest, now, until - now)
            more = alive and counters.rx_frames > before
            now = clock()

    def release(self) -> None:
        """Close the lifeline and the held descriptors."""
        for fd in (self.lifeline.fd, *self.held.values()):
            if fd >= 0:
                os.close(fd)
        self.held = {}
        self.lifeline = Lifeline(self.lifeline.kind, -1, self.lifeline.path)

    def __repr__(self) -> str:
        return f"<Network {self.name}>"


def record_of(network: Network) -> str:
    """A network's state as JSON, from which ``daemon`` builds it again with the stored descriptors."""
    spec = network.spec
    content = {
        "id": network.id,
        "spec": {name: getattr(spec, name) for name in spec.__slots__},
        "lifeline": {"kind": network.lifeline.kind, "path": network.lifeline.path},
        "held": sorted(network.held),
        "netns_inode": network.netns_inode,
        "created": network.created,
        "tap": {
            "mac": network.tap.mac,
            "vnet_hdr": network.tap.vnet_hdr,
            "offload": network.tap.offload,
            "uso": network.tap.uso,
            "address6": network.tap.address6,
        },
        "next_forward_id": network.next_forward_id(),
        "rules": network.rules.record(),
    }
    return f'{json.dumps(content)[:-1]},"forwards":[{",".join(network.forward_records())}]}}'
