"""One call of pesto: edit or show the ports of the network whose ``pasta -c SOCKET`` the caller names.

The daemon has both ends, so nothing passes that socket: its path finds the network. Edits are made in the order of the
command line, all or none; connections that a removed rule has opened live on, as with pasta.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from netd.attach.conversation import Conversation
from netd.attach.message import Exit, Hello, Realpath
from netd.dialects.pasta import texts as pasta_texts
from netd.dialects.pasta.command import ephemeral_ports
from netd.dialects.pasta.layout import forward_specs
from netd.dialects.pesto import texts
from netd.dialects.pesto.grammar import Outcome, PestoCall, parse
from netd.errors import NetdError
from netd.specs import ForwardSpec

if TYPE_CHECKING:
    from netd.daemon import Daemon
    from netd.network import Network

ORIGINS = ("pasta", "pesto")  # of forwards that are the table's, and so pesto's to edit


async def serve(shim: Conversation, hello: Hello, daemon: Daemon) -> None:
    """Answer the shim that ``hello`` describes."""
    call = parse(hello.argv0, hello.argv, ephemeral_ports())
    if isinstance(call, PestoCall):
        call = await _run(shim, daemon, call)
    shim.tell(Exit(status=call.status, stdout=call.stdout, stderr=call.stderr))


async def _run(shim: Conversation, daemon: Daemon, call: PestoCall) -> Outcome:
    answer = await shim.ask(Realpath(path=call.socket))
    if not answer.ok:
        return Outcome(1, "", texts.no_socket(call.socket, answer.error))
    network = network_at(daemon, answer.text)
    if network is None:
        return Outcome(1, "", texts.no_socket(call.socket, "no pasta of this netd serves it"))
    edit = _Edit(network)
    try:
        for action, _, spec in call.edits:
            forwards = [one for rule in spec.rules for one in forward_specs(rule, rule.protocol, freebind=False)]
            if action == "replace":
                edit.clear({rule.protocol for rule in spec.rules})
            for forward in forwards:
                if action == "delete":
                    edit.remove(forward)
                else:
                    edit.add(forward)
                if forward.best_effort:
                    await asyncio.sleep(0)
    except NetdError as error:
        edit.undo()
        return Outcome(1, "", pasta_texts.listen_failed(forward, error) + "\n")
    finally:
        daemon.changed(network)
    return Outcome(0, texts.table(network.forwards()) if call.show else "", "")


def network_at(daemon: Daemon, path: str) -> Network | None:
    """The network whose control socket is at ``path``: of several, an earlier one's file was replaced, the latest."""
    found = [network for network in daemon.networks.values() if network.spec.control == path]
    return max(found, key=lambda network: network.created, default=None)


class _Edit:
    """Changes of one network's table, which can be undone."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._added: list[int] = []
        self._removed: list[tuple[ForwardSpec, str]] = []

    def add(self, spec: ForwardSpec) -> None:
        """Publish, unless that very rule is there: Podman may say it twice (podman.md §2.8)."""
        if self._find(spec) is None:
            self._added.append(self._network.add_forward(spec, "pesto").id)

    def remove(self, spec: ForwardSpec) -> None:
        """Unpublish, if it is there."""
        id_ = self._find(spec)
        if id_ is not None:
            self._remove(id_)

    def clear(self, protocols: set[str]) -> None:
        """Unpublish all of the table's rules of these protocols."""
        for status in self._network.forwards():
            if status.origin in ORIGINS and status.spec.protocol in protocols:
                self._remove(status.id)

    def undo(self) -> None:
        """As it was before."""
        for id_ in self._added:
            self._network.remove_forward(id_)
        for spec, origin in self._removed:
            self._network.add_forward(spec, origin)

    def _find(self, spec: ForwardSpec) -> int | None:
        return next((s.id for s in self._network.forwards() if s.spec == spec and s.origin in ORIGINS), None)

    def _remove(self, id_: int) -> None:
        status = self._network.forward(id_)
        self._network.remove_forward(id_)
        if id_ in self._added:
            self._added.remove(id_)
        else:
            self._removed.append((status.spec, status.origin))
