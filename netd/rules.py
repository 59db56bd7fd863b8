"""The port rules of one network, as pasta has them: tables to which rules are added and from which they are taken.

A rule of the table "in" leads ports of the host into the guest: it is forwards, always, or with ``auto`` while somebody
in the guest listens. One of "out" leads ports of the guest's own loopback to the host's: it is listeners inside the
namespace, always, or with ``auto`` while somebody on the host listens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

from netd.errors import LimitReached, NetdError, NoSuchPort
from netd.inside import Inside
from netd.relay.autoports import (
    AutoPort,
    AutoPorts,
    AutoRule,
    Direction,
    reachable_anywhere,
    reachable_in_guest,
    reachable_on_host,
)
from netd.specs import ForwardSpec, ForwardStatus, PortRule

logger = logging.getLogger(__name__)

TABLES = ("in", "out")
AUTO = "auto"  # the origin of forwards that follow who listens
CHUNK = 512  # ports of a best-effort rule that are bound in one turn of the loop


class RuleFailed(Exception):
    """``rule`` cannot be had, because of ``error``; with ``whole`` not one port of it."""

    def __init__(self, rule: PortRule, error: NetdError, whole: bool = False) -> None:
        super().__init__(str(error))
        self.rule = rule
        self.error = error
        self.whole = whole


@dataclass(slots=True)
class _Entry:
    """A rule in a table, and the forwards that it is."""

    rule: PortRule
    ids: list[int] = field(default_factory=list)


class Rules:
    """``add_forward``, ``remove_forward`` and ``forwards`` are the network's. ``host_lo_to_ns_lo``: what listens on the
    guest's loopback alone can be reached from the host, and so is published as well."""

    def __init__(
        self,
        name: str,
        auto: AutoPorts,
        inside: Inside,
        add_forward: Callable[[ForwardSpec, str], ForwardStatus],
        remove_forward: Callable[[int], None],
        forwards: Callable[[], Sequence[ForwardStatus]],
        host_lo_to_ns_lo: bool,
    ) -> None:
        self._name = name
        self._auto = auto
        self._inside = inside
        self._add_forward = add_forward
        self._remove_forward = remove_forward
        self._forwards = forwards
        self._reachable = reachable_anywhere if host_lo_to_ns_lo else reachable_in_guest
        self._tables: dict[str, list[_Entry]] = {name: [] for name in TABLES}
        self._directions: dict[str, Direction] = {}
        self._numbers = count(1)
        self._outward: dict[int, AutoPort] = {}  # what the table "out" has published by itself

    def table(self, name: str) -> tuple[PortRule, ...]:
        """The rules of table "in" or "out", in the order in which they came."""
        return tuple(entry.rule for entry in self._tables[name])

    # -- changes -------------------------------------------------------------------------------------------------------

    async def add(self, table: str, rule: PortRule, origin: str, freebind: bool = False) -> None:
        """Have one rule more. RuleFailed."""
        entry = _Entry(rule)
        if not rule.auto:
            try:
                await (self._publish(entry, origin, freebind) if table == "in" else self._lead_out(rule))
            except BaseException:
                self._withdraw(table, entry)
                raise
        self._tables[table].append(entry)
        if rule.auto:
            await self.follow()

    async def _publish(self, entry: _Entry, origin: str, freebind: bool) -> None:
        rule = entry.rule
        failed: list[NetdError] = []
        specs = forward_specs(rule, freebind)
        for spec in specs:
            try:
                entry.ids.append(self._add_forward(spec, origin).id)
            except NetdError as error:
                if not rule.best_effort:
                    raise RuleFailed(rule, error) from None
                failed.append(error)
                if isinstance(error, LimitReached):
                    logger.warning("%s: of %s no more: %s", self._name, rule, error)
                    return
            if len(specs) > 1:
                await asyncio.sleep(0)
        if failed and not entry.ids:
            raise RuleFailed(rule, failed[0], whole=True)

    async def _lead_out(self, rule: PortRule) -> None:
        try:
            await self._inside.listen(rule, rule.first, rule.last)
        except NetdError as error:
            raise RuleFailed(rule, error, whole=rule.best_effort) from None

    async def remove(self, table: str, rule: PortRule) -> None:
        """Have one rule less; what it has opened lives on. It must be there."""
        entries = self._tables[table]
        entry = next(entry for entry in entries if entry.rule == rule)
        entries.remove(entry)
        if rule.auto:
            await self.follow()
        else:
            self._withdraw(table, entry)

    def _withdraw(self, table: str, entry: _Entry) -> None:
        rule = entry.rule
        if table == "out":
            for port in range(rule.first, rule.last + 1):
                self._inside.outward.remove(rule.protocol, port)
        for id_ in entry.ids:
            try:
                self._remove_forward(id_)
            except NoSuchPort:
                pass  # somebody has done it by REST

    # -- rules that follow who listens ---------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Look who listens, every second as far as there are rules for it. The first look is over on return."""
        rules = {name: [e.rule for e in entries if e.rule.auto] for name, entries in self._tables.items()}
        before, self._directions = self._directions, {}
        self._auto.close()
        try:
            if rules["in"]:
                diag = await self._inside.diag()
                self._directions["in"] = Direction(
                    f"{self._name}: ports of the host",
                    diag.dump,
                    [_auto_rule(rule) for rule in rules["in"]],
                    self._reachable,
                    self._inside.outward.ports,
                    self._add_in,
                    self._remove_forward,
                )
            if rules["out"]:
                self._directions["out"] = Direction(
                    f"{self._name}: ports of the guest's loopback",
                    self._inside.host_diag().dump,
                    [_auto_rule(rule) for rule in rules["out"]],
                    reachable_on_host,
                    self._own_host_ports,
                    self._add_out,
                    self._remove_out,
                )
        except (NetdError, OSError) as error:
            logger.warning("%s: ports do not follow who listens: %s", self._name, error)
        for name, direction in before.items():
            direction.hand_over(self._directions.get(name))
        self._auto.start(list(self._directions.values()))

    def _add_in(self, port: AutoPort) -> int:
        rule = port.rule
        spec = ForwardSpec(
            protocol=port.protocol,
            host_port=port.port,
            container_port=port.to_port,
            host_ip=rule.address,
            container_ip=rule.target,
            interface=rule.interface,
            dual_stack=not rule.address,
        )
        return self._add_forward(spec, AUTO).id

    def _own_host_ports(self, protocol: str) -> set[int]:
        return {
            port
            for forward in self._forwards()
            if forward.spec.protocol == protocol and forward.origin != AUTO
            for port in range(forward.spec.host_port, forward.spec.host_port + forward.spec.range)
        }

    def _add_out(self, port: AutoPort) -> int:
        number = next(self._numbers)
        self._outward[number] = port
        self._inside.later(self._open_out(number, port))
        return number

    async def _open_out(self, number: int, port: AutoPort) -> None:
        rule = PortRule(port.protocol, port.port, port.port, port.to_port, port.rule.address, "lo")
        try:
            await self._inside.listen(rule, port.port, port.port)
        except NetdError as error:
            if self._outward.pop(number, None) is not None and "out" in self._directions:
                self._directions["out"].failed(number, str(error))
            return
        if number not in self._outward:  # not wanted any more
            self._inside.outward.remove(port.protocol, port.port)

    def _remove_out(self, number: int) -> None:
        port = self._outward.pop(number)
        self._inside.outward.remove(port.protocol, port.port)

    # -- what outlives the process -----------------------------------------------------------------------------------

    def record(self) -> dict[str, list[dict[str, Any]]]:
        """As plain data. Forwards that follow who listens are not in it: they come again by themselves."""
        return {
            name: [{"rule": asdict(entry.rule), "ids": entry.ids} for entry in entries]
            for name, entries in self._tables.items()
        }

    def restore(self, record: dict[str, list[dict[str, Any]]]) -> None:
        """The tables of an earlier life, whose forwards are restored by themselves. KeyError, TypeError."""
        for name in TABLES:
            self._tables[name] = [
                _Entry(PortRule(**entry["rule"]), list(entry["ids"])) for entry in record.get(name, ())
            ]

    async def resume(self) -> None:
        """After ``restore``: what needs the namespace."""
        for entry in self._tables["out"]:
            if not entry.rule.auto:
                try:
                    await self._lead_out(entry.rule)
                except RuleFailed as error:
                    logger.warning("%s: %s", self._name, error)
        if any(entry.rule.auto for entries in self._tables.values() for entry in entries):
            await self.follow()

    def close(self) -> None:
        """The network ends."""
        self._auto.close()
        self._directions.clear()


def _auto_rule(rule: PortRule) -> AutoRule:
    return AutoRule(rule.protocol, rule.first, rule.last, rule.to_first, rule.address, rule.interface, rule.target)


def forward_specs(rule: PortRule, freebind: bool = False) -> list[ForwardSpec]:
    """A rule of the table "in" as forwards, one for each piece that is bound at once."""
    step = CHUNK if rule.best_effort else rule.last - rule.first + 1
    return [
        ForwardSpec(
            protocol=rule.protocol,
            host_port=first,
            container_port=rule.to_first + first - rule.first,
            host_ip=rule.address,
            range=min(step, rule.last - first + 1),
            container_ip=rule.target,
            interface=rule.interface,
            best_effort=rule.best_effort,
            freebind=freebind,
            dual_stack=not rule.address,
        )
        for first in range(rule.first, rule.last + 1, step)
    ]
