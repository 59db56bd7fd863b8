"""The port forwarding specifications of ``-t -u -T -U``: text in, rules out, and the table that rules stand in.

The grammar, from pasta(1):

    SPEC   := "none" | [LISTEN "/"] CHUNK ("," CHUNK)*
    LISTEN := [ADDR | "*"] ["%" IFNAME]                  only where the host listens, -t and -u
    CHUNK  := "all" [":" ADDR]                           every port that is not ephemeral
            | "auto"                                     the whole SPEC, but only what the other side listens on
            | "~" RANGE                                  not these, wherever in the SPEC it stands
            | RANGE [":" RANGE | ":" ADDR | ":" ADDR "/" RANGE]
    RANGE  := PORT ["-" PORT]
    ADDR   := IPv4 | IPv6 | "[" either "]"

A SPEC that names no ports to include means "all". The first "/" ends LISTEN if what stands before it is one.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import islice

from netd.dialects.pasta.addresses import SPACE, address, is_broadcast, literal
from netd.specs import PortRule

MAX_RULES = 255  # in one table
MAX_LISTENERS = 5 * 65536  # sockets, in one table
PROTOCOL = {"t": "tcp", "u": "udp", "T": "tcp", "U": "udp"}
IFNAMSIZ = 15  # bytes of an interface's name, net/if.h

_PORT = SPACE + r"\+?0*([0-9]{1,5})"
_RANGE = re.compile(rf"{_PORT}(?:-{_PORT})?", re.ASCII)


class PortError(Exception):
    """What pasta would print, without the last newline."""


@dataclass(frozen=True, slots=True)
class PortSpec:
    """One option's argument, understood."""

    option: str  # "t" "u" "T" "U"
    text: str
    rules: tuple[PortRule, ...]
    none: bool = False  # the word "none"; rules can be empty for other reasons


def parse_ports(text: str, option: str, ephemeral: range) -> PortSpec:
    """Read one specification. ``ephemeral``: net.ipv4.ip_local_port_range, which "all" leaves out.

    PortError if it is none. Whether its rules can be had is for ``PortTable.extend`` to say; of more than a table holds
    only as many are made as it takes to see that.
    """
    if text == "none":
        return PortSpec(option, text, (), none=True)
    base, chunks = PortRule(PROTOCOL[option], 0, 0, 0), text
    before, slash, after = text.partition("/")
    listen = _listen(before) if slash else None
    if listen is not None:
        if option in "TU":
            raise PortError(f"Listening address not allowed for -{option} {text}")
        base, chunks = replace(base, address=listen[0], interface=listen[1]), after
    if option in "TU":
        base = replace(base, interface="lo")
    rules = _rules(base, chunks, ephemeral)
    return PortSpec(option, text, tuple(islice(rules, MAX_RULES + 1)))


def _listen(text: str) -> tuple[str, str] | None:
    host, percent, interface = text.partition("%")
    if percent and (not interface or len(_raw(interface)) > IFNAMSIZ or re.search(r"\s", interface)):
        return None
    found = None if host in ("", "*") else address(host)
    if found is None and host not in ("", "*"):
        return None
    if interface in (".", ".."):
        raise PortError(f"Invalid interface name: {interface}")
    return literal(found) if found else "", interface


def _rules(base: PortRule, text: str, ephemeral: range) -> Iterator[PortRule]:
    included: list[tuple[int, int, int, str]] = []  # first, last, to_first, target
    excluded: list[tuple[int, int]] = []
    target, auto = "", False
    for chunk in text.split(","):
        if chunk == "auto":
            auto = True
        elif chunk == "all":
            target = ""
        elif chunk.startswith("all:"):
            target = _target(chunk.removeprefix("all:"), text)
        elif chunk.startswith("~"):
            excluded.append(_range(chunk[1:], text))
        else:
            included.append(_include(chunk, text))
    if not included:
        included.append((1, 65535, 1, target))
        base = replace(base, best_effort=True)
        excluded.append((ephemeral.start, ephemeral.stop - 1))
    base = replace(base, auto=auto)
    holes = _merged(excluded)
    return (
        replace(base, first=low, last=high, to_first=to_first + low - first, target=to)
        for first, last, to_first, to in included
        for low, high in _without(first, last, holes)
    )


def _include(chunk: str, text: str) -> tuple[int, int, int, str]:
    ports, colon, onto = chunk.partition(":")
    first, last = _range(ports, text)
    if not colon:
        return first, last, first, ""
    host, slash, onto_ports = onto.rpartition("/")
    if not slash and _RANGE.fullmatch(onto) is None:
        return first, last, first, _target(onto, text)
    to_first, to_last = _range(onto_ports, text)
    if to_last - to_first != last - first:
        raise _invalid(text)
    return first, last, to_first, _target(host, text) if slash else ""


def _range(text: str, whole: str) -> tuple[int, int]:
    found = _RANGE.fullmatch(text)
    if found is None:
        raise _invalid(whole)
    first, last = int(found[1]), int(found[2] or found[1])
    if not first <= last <= 65535:
        raise _invalid(whole)
    return first, last


def _target(text: str, whole: str) -> str:
    found = address(text)
    if found is None:
        raise _invalid(whole)
    return "" if found.is_unspecified else literal(found)


def _invalid(text: str) -> PortError:
    return PortError(f"Invalid port specifier '{text}'")


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same numbers as few ranges in order, with room between them."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(span for span in ranges if span[0] <= span[1]):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], high)
        else:
            merged.append((low, high))
    return merged


def _without(first: int, last: int, holes: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What ``holes`` (as ``_merged`` leaves them) leave of first..last."""
    for low, high in islice(holes, bisect_left(holes, first, key=lambda hole: hole[1]), None):
        if low > last:
            break
        if low > first:
            yield first, low - 1
        first = high + 1
    if first <= last:
        yield first, last


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class PortTable:
    """The rules of one direction, of which no two may want the same packet.

    A table of one family alone takes a rule for both as one for its own.
    """

    def __init__(
        self, *, ipv4: bool = True, ipv6: bool = True, without: Iterable[str] = (), rules: Iterable[PortRule] = ()
    ) -> None:
        self._ipv4, self._ipv6, self._without = ipv4, ipv6, frozenset(without)
        self._rules = list(rules)

    @property
    def rules(self) -> tuple[PortRule, ...]:
        """In the order in which they came."""
        return tuple(self._rules)

    def copy(self) -> PortTable:
        """One to try a change on."""
        return PortTable(ipv4=self._ipv4, ipv6=self._ipv6, without=self._without, rules=self._rules)

    def clear(self) -> None:
        """Have no rules."""
        self._rules.clear()

    def extend(self, spec: PortSpec, present: Collection[PortRule] = ()) -> PortSpec:
        """Add all rules of ``spec`` and return it with the rules as they were added. PortError leaves some of them.

        Rules that are here and in ``present`` as well are there already, and no conflict.
        """
        self._check_none(spec)
        rules = tuple(map(self._narrowed, spec.rules))
        for rule in rules:
            if rule not in present or rule not in self._rules:
                self.add(rule)
        return replace(spec, rules=rules)

    def remove(self, spec: PortSpec) -> None:
        """Delete all rules of ``spec``. PortError leaves some of them deleted."""
        self._check_none(spec)
        for rule in spec.rules:
            self.delete(rule)

    def add(self, rule: PortRule) -> PortRule:
        """Add one and return it as it was added. PortError if it is none, is too many, or overlaps another."""
        rule = self._narrowed(rule)
        problem = self._problem(rule) or self._conflict(rule) or self._excess(rule)
        if problem:
            raise PortError(f"{problem}\nUnable to add rule {rule}")
        self._rules.append(rule)
        return rule

    def delete(self, rule: PortRule) -> None:
        """Delete one. PortError if it is not there; a part of one is not."""
        rule = self._narrowed(rule)
        if rule in self._rules:
            self._rules.remove(rule)
            return
        other = next((other for other in self._rules if _overlap(rule, other)), None)
        problem = f"Couldn't find forwarding rule to delete: {rule}"
        if other is not None:
            problem = f"Specifier {rule} conflicts with rule {other}, but doesn't match it, can't delete"
        raise PortError(f"{problem}\nUnable to delete rule {rule}")

    def _check_none(self, spec: PortSpec) -> None:
        if spec.none and any(rule.protocol == PROTOCOL[spec.option] for rule in self._rules):
            raise PortError(f"-{spec.option} none conflicts with previous options")

    def _narrowed(self, rule: PortRule) -> PortRule:
        if rule.address or (self._ipv4 and self._ipv6):
            return rule
        return replace(rule, address="0.0.0.0" if self._ipv4 else "::")

    def _problem(self, rule: PortRule) -> str:
        if rule.first == 0:
            return "Forwarding rule attempts to map from port 0"
        if rule.to_first == 0:
            return "Forwarding rule attempts to map to port 0"
        family = _family(rule.address)
        if (family == "IPv4" and not self._ipv4) or (family == "IPv6" and not self._ipv6):
            return f"{family} forward, but {family} not enabled"
        if rule.protocol in self._without:
            name = rule.protocol.upper()
            return f"Can't add {name} forwarding rule, {name} not enabled"
        return _target_problem(rule, family) if rule.target else ""

    def _conflict(self, rule: PortRule) -> str:
        other = next((other for other in self._rules if _overlap(rule, other)), None)
        return "" if other is None else f"Forwarding configuration conflict: {rule} versus {other}"

    def _excess(self, rule: PortRule) -> str:
        if len(self._rules) >= MAX_RULES:
            return f"Too many rules (maximum {MAX_RULES})"
        if sum(one.last - one.first + 1 for one in (*self._rules, rule)) > MAX_LISTENERS:
            return f"Rules require too many listening sockets (maximum {MAX_LISTENERS})"
        return ""


def _target_problem(rule: PortRule, family: str) -> str:
    target = ip_address(rule.target)
    if target.is_multicast or is_broadcast(target):
        return f"Multicast target address {rule.target} for forwarding rule"
    onto = _family(rule.target)
    if not family:
        instead = "0.0.0.0" if onto == "IPv4" else "[::]"
        return f"Dual stack forward to {onto} address {rule.target} unsupported\nDid you mean {instead}/... instead?"
    if family != onto:
        return f"Forward from {family} ({rule.address}) to {onto} ({rule.target}) unsupported"
    return ""


def _family(literal_: str) -> str:
    return "" if not literal_ else "IPv6" if ":" in literal_ else "IPv4"


def _overlap(one: PortRule, other: PortRule) -> bool:
    """Whether both want some port of some address; the interface makes no difference."""
    if one.protocol != other.protocol or one.first > other.last or other.first > one.last:
        return False
    if not one.address or not other.address:
        return True
    if _family(one.address) != _family(other.address):
        return False
    return one.address == other.address or bool({one.address, other.address} & {"0.0.0.0", "::"})
