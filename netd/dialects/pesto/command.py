"""One call of pesto: edit or show the ports of the network whose ``pasta -c SOCKET`` the caller names.

The daemon has both ends, so nothing passes that socket: its path finds the network. Edits are made in the order of the
command line, all or none; connections that a removed rule has opened live on, as with pasta.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netd.attach.conversation import Conversation
from netd.attach.message import Exit, Hello, Realpath
from netd.dialects.outcome import Outcome
from netd.dialects.pasta.command import ephemeral_ports, rule_failure
from netd.dialects.pasta.portspec import PortError, PortTable
from netd.dialects.pesto import texts
from netd.dialects.pesto.grammar import PestoCall, apply, parse
from netd.rules import RuleFailed
from netd.specs import PortRule

if TYPE_CHECKING:
    from netd.daemon import Daemon
    from netd.network import Network

TABLES = {"HOST": "in", "SPLICE": "out"}  # pasta's names and ``rules.Rules``'


async def serve(shim: Conversation, hello: Hello, daemon: Daemon) -> None:
    """Answer the shim that ``hello`` describes."""
    call = parse(hello.argv0, hello.argv, ephemeral_ports())
    outcome = await _run(shim, daemon, call) if isinstance(call, PestoCall) else call
    shim.tell(Exit(status=outcome.status, stdout=outcome.stdout, stderr=outcome.stderr))


async def _run(shim: Conversation, daemon: Daemon, call: PestoCall) -> Outcome:
    answer = await shim.ask(Realpath(path=call.socket))
    network = network_at(daemon, answer.text) if answer.ok else None
    if network is None:
        reason = answer.error or "Connection refused"
        return Outcome(1, stderr=f"Failed to connect to {call.socket}: {reason}\n")
    shown = ""
    before = {name: network.rules.table(table) for name, table in TABLES.items()}
    if call.show:
        shown = texts.tables("Previous" if call.change else "passt/pasta", call.socket, before)
    if not call.change:
        return Outcome(0, shown)
    spec = network.spec
    tables = {
        name: PortTable(ipv4=bool(spec.guest_ip), ipv6=bool(spec.cidr6), without=spec.without, rules=rules)
        for name, rules in before.items()
    }
    try:
        after = {name: table.rules for name, table in apply(call.edits, tables).items()}
    except PortError as error:
        return Outcome(1, shown, f"{error}\n")
    try:
        await _change(network, before, after)
    except RuleFailed as failed:
        return Outcome(1, shown, rule_failure(failed))
    finally:
        daemon.changed(network)
    if call.show:
        shown += texts.tables("Updated", call.socket, after)
    return Outcome(0, shown)


def network_at(daemon: Daemon, path: str) -> Network | None:
    """The network whose control socket is at ``path``; of several, an earlier one's file was replaced, the latest."""
    found = [network for network in daemon.networks.values() if network.spec.dialect.get("control") == path]
    return max(found, key=lambda network: network.created, default=None)


async def _change(
    network: Network, before: dict[str, tuple[PortRule, ...]], after: dict[str, tuple[PortRule, ...]]
) -> None:
    """From one state to the other. RuleFailed leaves the one before, as far as its ports are still to be had."""
    rules = network.rules
    removed = [(name, rule) for name in before for rule in before[name] if rule not in after[name]]
    added = [(name, rule) for name in after for rule in after[name] if rule not in before[name]]
    for name, rule in removed:
        await rules.remove(TABLES[name], rule)
    done: list[tuple[str, PortRule]] = []
    try:
        for name, rule in added:
            await rules.add(TABLES[name], rule, "pesto")
            done.append((name, rule))
    except RuleFailed:
        for name, rule in done:
            await rules.remove(TABLES[name], rule)
        for name, rule in removed:
            await rules.add(TABLES[name], rule, "pesto")
        raise
