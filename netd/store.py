"""What outlives this process: the descriptors that each network lives on, and a record of plain data beside them, in
the service manager's store (FileDescriptorStoreMax= in systemd.service(5)). Without a service manager nothing does.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from typing import Any

from netd import __version__
from netd.network import PORT, Network, record_of
from netd.record import Record
from netd.sdnotify import Notifier

logger = logging.getLogger(__name__)

# Seconds from a network's attachment to its storing: woken at once, the service manager and we would run before whoever
# waits for the network. Who kills us within that time has a network that does not outlive us.
SOON = 0.01
# Until the rest: the status that systemctl shows, and published ports, each of which costs the service manager a
# process when it goes (for close(2) might block). One that is not stored is bound anew by our next life.
LATER = 0.5
_RECORD = "state"  # what the record is called in the store


class Store:
    """``networks`` are those that the record tells of, by id."""

    def __init__(self, notifier: Notifier, networks: dict[str, Network]) -> None:
        self._notifier = notifier
        self._networks = networks
        self._stored: dict[str, dict[str, list[int]]] = {}  # of each network, by key of ``Network.stored_fds``
        self._outlasting: set[str] = set()  # names of what need not go at once at a network's end
        self._late: dict[str, Network] = {}  # attached, but not stored yet
        self._portless: dict[str, Network] = {}  # stored but for its ports
        self._ended: list[str] = []  # of those, what is to go now
        self._record: Record | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def present(self) -> bool:
        """There is one: networks outlive this process."""
        return self._notifier.present

    # -- as networks change ------------------------------------------------------------------------------------------

    def changed_soon(self, network: Network) -> None:
        """``changed`` after what somebody waits for, and the ports after what comes next."""
        if not self._notifier.present:
            return
        if not self._late:
            asyncio.get_running_loop().call_later(SOON, self._catch_up)
        self._late[network.id] = network

    def _catch_up(self) -> None:
        self._portless |= self._late
        while self._late:
            self._bring_up_to_date(self._late.popitem()[1], PORT)

    def changed(self, network: Network) -> None:
        """A network, its forwards or its held descriptors changed: bring descriptors and record up to date."""
        self._late.pop(network.id, None)
        self._portless.pop(network.id, None)
        self._bring_up_to_date(network)

    def _bring_up_to_date(self, network: Network, without: str = "\0") -> None:
        notifier = self._notifier
        if not notifier.present or network.id not in self._networks:
            return
        stored = self._stored.setdefault(network.id, {})
        wanted = network.stored_fds()
        try:
            for key in [k for k, fds in stored.items() if (now := wanted.get(k)) is not fds and now != fds]:
                notifier.unstore(f"{network.id}.{key}")
                self._outlasting.discard(f"{network.id}.{key}")
                del stored[key]
            for key, fds in wanted.items():
                if key not in stored and not key.startswith(without):
                    notifier.store(f"{network.id}.{key}", fds, watched=not network.outlasts(key))
                    self.adopt(network, key, fds)
            self._write_record()
        except OSError as e:
            logger.error("%s would not survive a restart: %s", network.name, e)
        self._settle_later()

    def forget(self, network_id: str) -> None:
        """A network has ended."""
        self._late.pop(network_id, None)
        self._portless.pop(network_id, None)
        stored = self._stored.pop(network_id, None)
        if stored is None:
            return
        try:
            for name in (f"{network_id}.{key}" for key in stored):
                if name in self._outlasting:
                    self._outlasting.remove(name)
                    self._ended.append(name)
                else:
                    self._notifier.unstore(name)
            self._write_record()
        except OSError as e:
            logger.error("the record of networks could not be written: %s", e)
        self._settle_later()

    def _settle_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LATER, self.settle)

    def settle(self) -> None:
        """All that was put off."""
        for network in [*self._late.values(), *self._portless.values()]:
            self.changed(network)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ports = sum(n.port_count() for n in self._networks.values())
        try:
            while self._ended:
                self._notifier.unstore(self._ended.pop())
            self._notifier.send(f"STATUS={len(self._networks)} networks, {ports} published ports")
        except OSError as e:
            logger.error("the service manager cannot be told what has changed: %s", e)

    def _write_record(self) -> None:
        if self._record is None:
            self._record = Record()
            self._notifier.store(_RECORD, [self._record.fd])
        self._record.write({"version": __version__}, networks=map(record_of, self._networks.values()))

    # -- from one life to the next -----------------------------------------------------------------------------------

    def take_up(self, stored: Iterable[tuple[str, int]]) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
        """What an earlier life has left: its record of networks, and the descriptors by name, now the caller's."""
        by_name: dict[str, list[int]] = {}
        for name, fd in stored:
            by_name.setdefault(name, []).append(fd)
        content: dict[str, Any] | None = None
        state = by_name.pop(_RECORD, [])
        if state:
            record = Record(state[0])
            content = record.read()
            if content is None:
                logger.warning("the record of an earlier netd is not readable: starting cold")
            for fd in state if content is None else state[1:]:
                os.close(fd)
            if content is None:
                self.let_go(_RECORD)
            else:
                self._record = record
        entries = (content or {}).get("networks")
        return entries if isinstance(entries, list) else [], by_name

    def adopt(self, network: Network, key: str, fds: list[int]) -> None:
        """Something of the network's is in the store already."""
        self._stored.setdefault(network.id, {})[key] = fds
        if key.startswith(PORT) and network.outlasts(key):
            self._outlasting.add(f"{network.id}.{key}")

    def let_go(self, name: str) -> None:
        """Something in the store is of no use."""
        self._notifier.unstore(name)

    def close(self) -> None:
        """The process ends; what is stored stays."""
        if self._timer is not None:
            self._timer.cancel()
        if self._record is not None:
            os.close(self._record.fd)
            self._record = None
