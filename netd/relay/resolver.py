"""The host's name servers: /etc/resolv.conf as it is now, one socket per query, failover.

``forwarding`` (``services.dns``) decides; this room has the sockets and the clock. It is handed in by the composition
root, since relay does not know services.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import secrets
import socket
import stat
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from netd.relay.sockaddr import resolve
from netd.relay.source import ANYWHERE, Source
from netd.wire import dns

RESOLV_CONF_SECONDS: Final = 1.0  # how often the file is looked at, at most
_MAX_RESOLV_CONF: Final = 64 << 10


class Transaction(Protocol):
    """See ``services.dns.Transaction``."""

    servers: list[str]
    server: int
    reply: Callable[[bytes], None]

    def message(self) -> bytes: ...
    def accept(self, message: bytes) -> bool | None: ...
    def next_server(self) -> bool: ...
    def finish(self) -> bytes: ...


class Forwarding(Protocol):
    """See ``services.dns``."""

    TRY_SECONDS: float
    MAX_TRANSACTIONS: int

    def Transaction(
        self, query: bytes, ident: int, servers: list[str], reply: Callable[[bytes], None]
    ) -> Transaction: ...
    def acceptable(self, query: bytes) -> bool: ...
    def servers_in(self, resolv_conf: str) -> list[str]: ...


class NameServers:
    """The servers of a resolv.conf, re-read when the file changes. Shared by all networks."""

    def __init__(
        self,
        path: str,
        parse: Callable[[str], list[str]],
        clock: Callable[[], float],
        parse_search: Callable[[str], list[str]] | None = None,
    ) -> None:
        self._path = path
        self._parse = parse
        self._parse_search = parse_search
        self._search: list[str] = []
        self._clock = clock
        self._checked = float("-inf")
        self._identity: tuple[int, ...] = ()
        self._servers: list[str] = []

    def current(self) -> list[str]:
        """Addresses in the order of the file; empty if there is none."""
        now = self._clock()
        if now - self._checked >= RESOLV_CONF_SECONDS:
            self._checked = now
            try:
                status = os.stat(self._path)
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EINVAL, "not a file")  # opening a fifo could wait for ever
                identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
                if identity != self._identity:
                    with open(self._path, encoding="utf-8", errors="replace") as file:
                        text = file.read(_MAX_RESOLV_CONF)
                    self._servers = [s for s in self._parse(text) if _is_address(s)]
                    self._search = self._parse_search(text) if self._parse_search is not None else []
                    self._identity = identity
            except OSError:
                self._servers, self._search, self._identity = [], [], ()
        return self._servers

    def search(self) -> list[str]:
        """The domains that names are tried in."""
        self.current()
        return self._search


class Fixed:
    """Name servers that were named."""

    def __init__(self, servers: Sequence[str]) -> None:
        self._servers = list(servers)

    def current(self) -> list[str]:
        """All of them."""
        return self._servers


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class Query:
    """One transaction's sockets and timer."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        transaction: Transaction,
        seconds: float,
        source: Source,
        done: Callable[[Query, bool], None],
    ) -> None:
        self._loop = loop
        self.transaction = transaction
        self._seconds = seconds
        self._source = source
        self._done = done
        self._sock: socket.socket | None = None
        self._timer: TimerHandle | None = None

    def ask(self) -> None:
        """Send to the present server, or to the first after it that takes the message."""
        transaction = self.transaction
        if not transaction.servers:
            self._finish(False)
            return
        while True:
            address = transaction.servers[transaction.server]
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            try:
                sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            except OSError as e:
                if e.errno == errno.EAFNOSUPPORT and transaction.next_server():
                    continue  # a host without IPv6
                self._finish(False)
                return
            try:
                self._source.bind(sock, address)
                sock.connect(resolve(address, dns.PORT))
                sock.send(transaction.message())
            except OSError:
                sock.close()
                if transaction.next_server():
                    continue
                self._finish(False)
                return
            self._sock = sock
            self._loop.add_reader(sock.fileno(), self._on_readable, sock)
            self._timer = self._loop.call_later(self._seconds, self._on_failure)
            return

    def _on_readable(self, sock: socket.socket) -> None:
        if sock is not self._sock:
            return
        try:
            message = sock.recv(65535)
        except BlockingIOError:
            return
        except OSError:
            self._on_failure()  # refused
            return
        verdict = self.transaction.accept(message)
        if verdict is None:
            return
        if verdict:
            self._finish(True)
        else:
            self._on_failure()

    def _on_failure(self) -> None:
        self.close()
        if self.transaction.next_server():
            self.ask()
        else:
            self._finish(False)

    def _finish(self, answered: bool) -> None:
        self.close()
        self._done(self, answered)

    def close(self) -> None:
        """Drop the socket and the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            sock.close()


class Servers(Protocol):
    """Where the addresses of name servers come from."""

    def current(self) -> list[str]:
        """In the order in which they are asked."""


class DnsCounters(Protocol):
    """The names this room counts under."""

    dns_queries: int
    dns_failed: int
    dns_dropped: int


class Resolver:
    """The queries of one network."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        forwarding: Forwarding,
        name_servers: Servers,
        counters: DnsCounters,
        source: Source = ANYWHERE,
    ) -> None:
        self._loop = loop
        self._forwarding = forwarding
        self._name_servers = name_servers
        self._counters = counters
        self._source = source
        self._queries: set[Query] = set()

    def servers(self) -> list[str]:
        """The servers as they are now."""
        return self._name_servers.current()

    def query(self, message: bytes, reply: Callable[[bytes], None]) -> None:
        """Forward one DNS message; ``reply`` is called once, unless the message is none or the bound is reached."""
        forwarding, counters = self._forwarding, self._counters
        if not forwarding.acceptable(message) or len(self._queries) >= forwarding.MAX_TRANSACTIONS:
            counters.dns_dropped += 1
            return
        counters.dns_queries += 1
        transaction = forwarding.Transaction(message, secrets.randbits(16), list(self.servers()), reply)
        query = Query(self._loop, transaction, forwarding.TRY_SECONDS, self._source, self._on_done)
        self._queries.add(query)
        query.ask()

    def _on_done(self, query: Query, answered: bool) -> None:
        self._queries.discard(query)
        if not answered:
            self._counters.dns_failed += 1
        query.transaction.reply(query.transaction.finish())

    def __len__(self) -> int:
        return len(self._queries)

    def close(self) -> None:
        """The network ends: nobody waits for answers any more."""
        for query in self._queries:
            query.close()
        self._queries.clear()
