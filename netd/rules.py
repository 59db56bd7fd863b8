"""The port rules of one network, as pasta has them: tables to which rules are added and from which they are taken.

A rule of the table "in" leads ports of the host into the guest: it is forwards, always, or with ``auto`` while somebody
in the guest listens. One of "out" leads ports of the guest's own loopback to the host's: it is listeners inside the
namespace, which the agent makes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from netd.errors import NetdError, NoSuchPort
from netd.netns.plan import SocketPlan
from netd.specs import ForwardSpec, ForwardStatus, PortRule

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
    ids: list[int]


class Rules:
    """``add_forward`` and ``remove_forward`` are the network's, ``open_sockets`` makes some in its namespace."""

    def __init__(
        self,
        add_forward: Callable[[ForwardSpec, str], ForwardStatus],
        remove_forward: Callable[[int], None],
        open_sockets: Callable[[Sequence[SocketPlan]], Awaitable[list[int | str]]],
    ) -> None:
        self._add_forward = add_forward
        self._remove_forward = remove_forward
        self._open_sockets = open_sockets
        self._tables: dict[str, list[_Entry]] = {"in": [], "out": []}

    def table(self, name: str) -> tuple[PortRule, ...]:
        """The rules of table "in" or "out", in the order in which they came."""
        return tuple(entry.rule for entry in self._tables[name])

    async def add(self, table: str, rule: PortRule, origin: str, freebind: bool = False) -> None:
        """Have one rule more. RuleFailed."""
        entry = _Entry(rule, [])
        failed: list[NetdError] = []
        specs = forward_specs(rule, freebind)
        try:
            for spec in specs:
                try:
                    entry.ids.append(self._add_forward(spec, origin).id)
                except NetdError as error:
                    if not rule.best_effort:
                        raise RuleFailed(rule, error) from None
                    failed.append(error)
                if len(specs) > 1:
                    await asyncio.sleep(0)
            if failed and not entry.ids:
                raise RuleFailed(rule, failed[0], whole=True)
        except BaseException:
            self._withdraw(entry)
            raise
        self._tables[table].append(entry)

    def remove(self, table: str, rule: PortRule) -> None:
        """Have one rule less; what it has opened lives on. It must be there."""
        entries = self._tables[table]
        entry = next(entry for entry in entries if entry.rule == rule)
        entries.remove(entry)
        self._withdraw(entry)

    def _withdraw(self, entry: _Entry) -> None:
        for id_ in entry.ids:
            try:
                self._remove_forward(id_)
            except NoSuchPort:
                pass  # somebody has done it by REST

    # -- what outlives the process -----------------------------------------------------------------------------------

    def record(self) -> dict[str, list[dict[str, Any]]]:
        """As plain data."""
        return {
            name: [{"rule": asdict(entry.rule), "ids": entry.ids} for entry in entries]
            for name, entries in self._tables.items()
        }

    def restore(self, record: dict[str, list[dict[str, Any]]]) -> None:
        """The tables of an earlier life, whose forwards are restored by themselves. KeyError, TypeError."""
        for name, entries in record.items():
            self._tables[name] = [_Entry(PortRule(**entry["rule"]), list(entry["ids"])) for entry in entries]


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
        )
        for first in range(rule.first, rule.last + 1, step)
    ]
