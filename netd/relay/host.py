"""The host's network as the stack sees it (``stack.ports.Host``): sockets outwards are opened here."""

from __future__ import annotations

import contextlib
import logging
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import TYPE_CHECKING

from netd.relay.datagram import Datagrams
from netd.relay.echo import Echo
from netd.relay.errqueue import REASONS
from netd.relay.outbox import outbox
from netd.relay.poller import Poller, Turns
from netd.relay.resolver import Resolver
from netd.relay.sockaddr import resolve
from netd.relay.source import ANYWHERE, Source
from netd.relay.stream import Address, Pace, Stream
from netd.relay.tails import Tails
from netd.relay.tcp_socket import TcpSocket
from netd.stack.flow import EchoFlow, UdpFlow
from netd.stack.ports import ADMIN_PROHIBITED, HOST_UNREACHABLE, Buffer, GuestStream

if TYPE_CHECKING:
    from netd.stack.udp import UdpTable

logger = logging.getLogger(__name__)


class HostNetwork:
    """One network's way out. TCP sockets' events are taken in ``turns``; ``flush`` is called after each event
    of a host socket."""

    udp: UdpTable
    resolver: Resolver
    pace: Pace

    def __init__(
        self,
        loop: AbstractEventLoop,
        clock: Callable[[], float],
        flush: Callable[[], None],
        turns: Turns,
        source: Source = ANYWHERE,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._flush = flush
        self._source = source
        self._endpoints: dict[bytes, Datagrams] = {}
        self._told_ping = self._told_sockets = False
        self._poller = Poller(loop, clock, turns)
        self._tails = Tails(loop)

    def flush(self) -> None:
        """Call after each batch of frames: what was gathered goes out, and what became of connects is told."""
        self._tails.push_held()
        self._poller.tell()
        if outbox.flow is not None:
            outbox.flush()

    def new_stream(self, sock: TcpSocket | None) -> Stream:
        """The host side of a connection; ``sock`` where the host's peer has connected to us."""
        return Stream(self._loop, self._clock, self._flush, self.pace, self._poller, self._tails, sock)

    def connect(self, connection: GuestStream, ip: bytes, port: int) -> Stream:
        """To ``ip``:``port``."""
        stream = self.new_stream(None)
        stream.connection = connection
        stream.connect([self._source.sockaddr(ip, port)], self._source)
        return stream

    def connect_resolver(self, connection: GuestStream, port: int) -> Stream:
        """To ``port`` of a name server; a dead one is followed by the next."""
        stream = self.new_stream(None)
        stream.connection = connection
        addresses: list[Address] = []
        for server in self.resolver.servers():
            with contextlib.suppress(OSError):  # a zone that is gone
                addresses.append(resolve(server, port))
        stream.connect(addresses, self._source)
        return stream

    def open_datagrams(self, flow: UdpFlow) -> Datagrams | None:
        """The socket of the flow's guest endpoint."""
        key = flow.guest + flow.guest_port.to_bytes(2, "big")
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            try:
                endpoint = Datagrams(
                    self._loop,
                    self._clock,
                    self._flush,
                    self.udp,
                    flow.guest,
                    flow.guest_port,
                    self._source,
                    self._forget_endpoint,
                )
            except OSError as e:
                if not self._told_sockets:  # the guest decides how often
                    self._told_sockets = True
                    logger.warning("no UDP socket for the guest: %s", e.strerror)
                return None
            self._endpoints[key] = endpoint
        endpoint.adopt(flow)
        return endpoint

    def _forget_endpoint(self, key: bytes) -> None:
        self._endpoints.pop(key, None)

    def resolve(self, flow: UdpFlow, query: Buffer) -> None:
        """One DNS message."""
        self.resolver.query(bytes(query), flow.to_guest)

    def open_echo(self, flow: EchoFlow) -> Echo | int:
        """A ping socket, or why not."""
        try:
            return Echo(self._loop, flow, self._source)
        except PermissionError:
            if not self._told_ping:
                self._told_ping = True
                logger.warning(
                    "containers cannot ping the outside: the host's net.ipv4.ping_group_range excludes this user"
                    " (as root: sysctl -w net.ipv4.ping_group_range='0 2147483647')"
                )
            return ADMIN_PROHIBITED
        except OSError as e:
            return REASONS.get(e.errno or 0, HOST_UNREACHABLE)

    def close(self) -> None:
        """The network ends."""
        outbox.flush()
        self.resolver.close()
        for endpoint in list(self._endpoints.values()):
            endpoint.close()
        self._poller.close()
