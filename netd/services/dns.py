"""The DNS forwarder: which server a query goes to, and when it goes to the next.

Messages pass through unchanged but for their id, which is ours towards the server (RFC 5452 §4.5: unpredictable, and
from a port of its own). A server that is silent for ``TRY_SECONDS``, refuses, or fails is followed by the next one;
when none is left the last failure is the answer, or SERVFAIL.
"""

from __future__ import annotations

from collections.abc import Callable

from netd.wire import dns

TRY_SECONDS = 2.0
MAX_TRANSACTIONS = 512
MAX_SEARCH = 6  # MAXDNSRCH of older C libraries
MAX_SERVERS = 3  # MAXNS, resolv.conf(5)


class Transaction:
    """One query of the guest's, on its way through the servers."""

    __slots__ = ("answer", "deadline", "ident", "query", "question", "reply", "server", "servers")

    def __init__(self, query: bytes, ident: int, servers: list[str], reply: Callable[[bytes], None]) -> None:
        self.query = query
        self.ident = ident
        self.servers = servers
        self.server = 0  # index into servers: the one being asked
        self.reply = reply
        self.answer = b""  # the best failure so far
        self.deadline = 0.0
        self.question = query[dns.SIZE : dns.question_end(query)]

    def message(self) -> bytes:
        """The query as the server gets it."""
        return self.ident.to_bytes(2, "big") + self.query[2:]

    def accept(self, message: bytes) -> bool | None:
        """A server's message: True: the answer; False: ask the next server; None: a stranger's."""
        if len(message) < dns.SIZE:
            return None
        ident, flags, qdcount, _, _, _ = dns.HEADER.unpack_from(message)
        if ident != self.ident or not flags & dns.QR:
            return None
        question = self.question
        found = message[dns.SIZE : dns.SIZE + len(question)]
        if qdcount:
            if found[-4:] != question[-4:] or found[:-4].lower() != question[:-4].lower():
                return None
        elif not flags & dns.RCODE:
            return None  # only a failure may leave the question out
        self.answer = self.query[:2] + message[2:]
        return flags & dns.RCODE not in (dns.SERVFAIL, dns.REFUSED)

    def next_server(self) -> bool:
        """Go on to the next server; False when there is none."""
        self.server += 1
        return self.server < len(self.servers)

    def finish(self) -> bytes:
        """What the guest is told in the end."""
        return self.answer or dns.servfail(self.query)


def acceptable(query: bytes) -> bool:
    """True for a message that may be forwarded: a query with exactly one question that can be walked."""
    if len(query) < dns.SIZE:
        return False
    _, flags, qdcount, _, _, _ = dns.HEADER.unpack_from(query)
    return not flags & dns.QR and qdcount == 1 and dns.question_end(query) > 0


def search_in(resolv_conf: str) -> list[str]:
    """The search list of resolv.conf(5): the last ``search`` or ``domain`` line."""
    found: list[str] = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if words and words[0] in ("search", "domain"):
            found = words[1:]
    return found[:MAX_SEARCH]


def servers_in(resolv_conf: str) -> list[str]:
    """The nameserver lines of resolv.conf(5), the first three; IPv6 zone ids are kept."""
    servers = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            servers.append(words[1])
    return servers[:MAX_SERVERS]
