"""The set of networks: attach, detach, and building them again from what an earlier life of this process has stored."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from netd.blueprint import plan_of
from netd.errors import (
    AmbiguousNetwork,
    LimitReached,
    NamespaceUnavailable,
    NetdError,
    NetworkExists,
    NoSuchNetwork,
    ShuttingDown,
)
from netd.lifeline import KINDS_HELD, Unlinks, Watch, has_ended, is_deserted
from netd.link.tap import is_attached
from netd.netns.plan import HostView, OpenTap, SocketPlan
from netd.netns.spawn import Agent
from netd.netns.view import Host
from netd.network import NETNS, PORT, Network, clock
from netd.pace import Pace
from netd.relay.resolver import NameServers
from netd.sdnotify import Notifier
from netd.services import dns
from netd.settings import Settings
from netd.specs import ForwardSpec, Lifeline, NetworkSpec, network_spec
from netd.store import SOON, Store

CLOSERS = 4  # threads, none before it is needed

logger = logging.getLogger(__name__)

Observer = Callable[[str, Network], None]


def _share_an_address(one: str, other: str) -> bool:
    """True if listeners on both would be in each other's way; "" is every address of both families."""
    if not one or not other or one == other:
        return True
    return (":" in one) == (":" in other) and not {one, other}.isdisjoint(("0.0.0.0", "::"))


class Daemon:
    """All networks of one owner."""

    _pace: Pace
    _unlinks: Unlinks

    def __init__(self, settings: Settings, notifier: Notifier | None = None) -> None:
        self.settings = settings
        self.networks: dict[str, Network] = {}
        self.observers: list[Observer] = []
        self.started = time.time()
        self.compiled = not str(sys.modules[Network.__module__].__file__).endswith(".py")  # setup.py
        self._store = Store(notifier or Notifier(), self.networks)
        self._agent = Agent()
        self._host = Host(self._agent.host_view)
        self._name_servers = NameServers(str(settings.resolv_conf), dns.servers_in, clock, dns.search_in)
        self._watches: dict[str, Watch] = {}
        self._attaching: set[tuple[str, tuple[int, str]]] = set()  # name, (namespace, interface)
        self._closers = ThreadPoolExecutor(CLOSERS, "netd-close")
        self._stopping = False

    # -- attach and detach ---------------------------------------------------------------------------------------

    async def attach(
        self,
        spec: NetworkSpec,
        netns_fd: int,
        lifeline: Lifeline,
        held: dict[str, int] | None = None,
        tap: OpenTap | None = None,
    ) -> Network:
        """Give the namespace its network. Takes over every descriptor in the arguments, whatever happens.

        With ``tap``, a device of somebody else's making, nothing is done in the namespace, and ``netns_fd`` may be -1.
        On return traffic flows. NetdError.
        """
        held = dict(held or {})
        if spec.host_like and netns_fd >= 0:
            held[NETNS] = os.dup(netns_fd)  # its ports may need sockets in there
        try:
            try:
                _check_open(lifeline, held)
                inode = self._admit(spec, netns_fd, tap)
            except BaseException:
                _close_all(() if tap is None else (tap.fd,))
                raise
            network = await self._attach(spec, netns_fd, inode, lifeline, held, tap)
        except BaseException:
            _close_all((lifeline.fd, *held.values()))
            raise
        finally:
            _close_all((netns_fd,))
        self._watch_all(network)
        loop = asyncio.get_running_loop()  # the caller waits, and the journal would run before it
        loop.call_later(SOON, logger.info, "attached %s (%s, %s)", network.name, spec.origin, lifeline.kind)
        self.changed_soon(network)
        self._tell("attached", network)
        return network

    def _admit(self, spec: NetworkSpec, netns_fd: int, tap: OpenTap | None) -> int:
        """The namespace's inode, 0 where only the TAP is known. NetdError when there is no room for the network."""
        if self._stopping:
            raise ShuttingDown("netd is stopping")
        if len(self.networks) + len(self._attaching) >= self.settings.max_networks:
            raise LimitReached(f"netd serves at most {self.settings.max_networks} networks (max_networks)")
        try:
            inode = os.fstat(netns_fd).st_ino if tap is None or netns_fd >= 0 else 0
        except OSError as e:
            raise NamespaceUnavailable(f"no network namespace: {e.strerror}") from None
        name = spec.name
        for other in list(self.networks.values()):
            same_device = other.netns_inode == inode and other.spec.ifname == spec.ifname
            if not inode and tap is not None:  # the same name in two namespaces of which we know nothing
                same_device = same_device and other.tap.mac == tap.mac
            if same_device or (name and name in (other.name, other.id)):
                # A container that restarts comes back before its old lifeline's event may have been looked at.
                if not has_ended(other.lifeline, other.held):
                    what = (
                        f"the namespace has a network at {spec.ifname} already" if same_device else "the name is taken"
                    )
                    raise NetworkExists(f"{what}: {other.name} ({other.id})")
                self._end(other, "ended")
        for other_name, other_device in self._attaching:
            if name and other_name == name:
                raise NetworkExists(f"the name is taken: {name} is being attached")
            if other_device == (inode, spec.ifname):
                raise NetworkExists(f"the namespace is getting a network at {spec.ifname} just now: {other_name}")
        return inode

    async def _attach(
        self,
        spec: NetworkSpec,
        netns_fd: int,
        inode: int,
        lifeline: Lifeline,
        held: dict[str, int],
        tap: OpenTap | None,
    ) -> Network:
        id_ = secrets.token_hex(6)
        if tap is None:
            under_way = spec.name or id_, (inode, spec.ifname)
            self._attaching.add(under_way)
            try:
                tap = await self._agent.open_tap(netns_fd, plan_of(spec, self.settings.offload))
            finally:
                self._attaching.discard(under_way)
            if self._stopping:
                os.close(tap.fd)
                raise ShuttingDown("netd is stopping")
        network = self._new_network(id_, spec, lifeline, held, tap, inode)
        self.networks[id_] = network
        return network

    def _new_network(
        self,
        id_: str,
        spec: NetworkSpec,
        lifeline: Lifeline,
        held: dict[str, int],
        tap: OpenTap,
        inode: int,
        created: float = 0.0,
    ) -> Network:
        try:
            return Network(
                asyncio.get_running_loop(),
                id_,
                spec,
                lifeline,
                held,
                tap,
                inode,
                self._name_servers,
                on_lost=lambda network: self._end(network, "its device is gone"),
                holder_of=self._holder_of,
                free_dead=self._free_dead,
                open_sockets=self._open_sockets,
                pace=self._pace,
                created=created,
            )
        except BaseException:
            os.close(tap.fd)
            raise

    def _watch_all(self, network: Network) -> None:
        self._watch(network, network.lifeline)
        for kind in KINDS_HELD:
            if kind in network.held:
                self._watch(network, Lifeline(kind, network.held[kind]))

    def _watch(self, network: Network, lifeline: Lifeline) -> None:
        watch = self._watches.get(network.id)
        if watch is None:
            loop = asyncio.get_running_loop()
            watch = self._watches[network.id] = Watch(loop, self._unlinks, lambda: self._end(network, "ended"))
        try:
            watch.add(lifeline)
        except (NetdError, OSError) as e:
            logger.info("%s: %s", network.name, e)
            asyncio.get_running_loop().call_soon(self._end, network, "ended")

    async def detach(self, network: Network) -> None:
        """End a network: TAP, forwards, flows and descriptors go, observers hear of it. Idempotent."""
        self._end(network, "detached")

    def _end(self, network: Network, why: str) -> None:
        if self.networks.pop(network.id, None) is None:
            return
        watch = self._watches.pop(network.id, None)
        if watch is not None:
            watch.close()
        self._close(network)
        logger.info("%s: %s", network.name, why)
        self._tell("detached", network)
        network.release()
        self._store.forget(network.id)

    def _close(self, network: Network) -> None:
        """``network.close``. Whoever closes a TAP last waits while the kernel takes it down, some 20 ms
        (synchronize_net()): mostly that is the service manager, else a thread of ours and not the loop."""
        last = -1
        if not self._store.present and network.tap.fd >= 0:
            with contextlib.suppress(OSError):  # no free descriptor
                last = os.dup(network.tap.fd)
        network.close()
        if last >= 0:
            self._closers.submit(os.close, last)

    def _tell(self, event: str, network: Network) -> None:
        for observer in list(self.observers):
            observer(event, network)

    # -- the host, for doors that make a guest like it ---------------------------------------------------------------

    async def host_view(self) -> HostView:
        """The host's interfaces, addresses and routes. AgentUnavailable."""
        return await self._host.view()

    def name_servers(self) -> list[str]:
        """The host's, as they are now."""
        return list(self._name_servers.current())

    def search_domains(self) -> list[str]:
        """The host's, as they are now."""
        return list(self._name_servers.search())

    # -- finding -------------------------------------------------------------------------------------------------

    def network(self, ref: str) -> Network:
        """By id, unique id prefix, or name. NoSuchNetwork, AmbiguousNetwork."""
        found = self.networks.get(ref)
        if found is not None:
            return found
        for network in self.networks.values():
            if network.name == ref:
                return network
        matches = [network for id_, network in self.networks.items() if ref and id_.startswith(ref)]
        if not matches:
            raise NoSuchNetwork(f"no network {ref!r}")
        if len(matches) > 1:
            listed = ", ".join(f"{network.id} ({network.name})" for network in matches)
            raise AmbiguousNetwork(f"{ref!r} fits several networks: {listed}")
        return matches[0]

    def _holders_of(self, spec: ForwardSpec) -> list[Network]:
        """The networks of ours that listen on a port of ``spec``."""
        ports = range(spec.host_port, spec.host_port + spec.range)
        holders = []
        for network in self.networks.values():
            for forward in network.forwards():
                other = forward.spec
                overlap = other.host_port < ports.stop and ports.start < other.host_port + other.range
                if other.protocol == spec.protocol and overlap and _share_an_address(other.host_ip, spec.host_ip):
                    holders.append(network)
                    break
        return holders

    def _holder_of(self, spec: ForwardSpec) -> str:
        return next((network.name for network in self._holders_of(spec)), "")

    def _free_dead(self, spec: ForwardSpec) -> bool:
        """End the holders of ports of ``spec`` whose lifelines have ended unseen, or whose container was killed behind
        Podman's back (podman.md, T11); True if any."""
        dead = [
            network
            for network in self._holders_of(spec)
            if has_ended(network.lifeline, network.held)
            or is_deserted(network.lifeline, network.netns_inode, time.time() - network.created)
        ]
        for network in dead:
            self._end(network, "ended")
        return bool(dead)

    async def _open_sockets(self, network: Network, plans: Sequence[SocketPlan]) -> list[int | str]:
        """Sockets in the network's namespace (``Agent.open_sockets``); of one that is not known there are none."""
        if NETNS not in network.held:
            return ["the namespace is not known"] * len(plans)
        return await self._agent.open_sockets(network.held[NETNS], plans)

    # -- what outlives the process -------------------------------------------------------------------------------

    def changed(self, network: Network) -> None:
        """A network, its forwards or its held descriptors changed: so must what is stored of it."""
        self._store.changed(network)

    def changed_soon(self, network: Network) -> None:
        """``changed``, but after what somebody waits for."""
        self._store.changed_soon(network)

    def _restore(self, stored: Iterable[tuple[str, int]]) -> None:
        """Build the networks again from the service manager's descriptors; what fits nothing is closed and let go."""
        entries, by_name = self._store.take_up(stored)
        for entry in entries:
            try:
                self._restore_network(entry, by_name)
            except (NetdError, OSError, KeyError, TypeError, ValueError) as e:
                id_ = entry.get("id") if isinstance(entry, dict) else entry
                logger.warning("network %s could not be restored: %s", id_, e)
        for name, fds in by_name.items():
            for fd in fds:
                os.close(fd)
            self._store.let_go(name)

    def _restore_network(self, entry: dict[str, Any], by_name: dict[str, list[int]]) -> None:
        id_ = entry["id"]
        spec = network_spec(entry["spec"])
        kind, path = entry["lifeline"]["kind"], entry["lifeline"]["path"]
        names = {key: f"{id_}.{key}" for key in ("tap", "life")}
        if names["tap"] not in by_name or (kind in ("exit_fd", "shim", "pidfd") and names["life"] not in by_name):
            raise NamespaceUnavailable("it ended while netd was away")
        tap_fd = by_name[names["tap"]][0]
        if not is_attached(tap_fd):
            raise NamespaceUnavailable("its device is gone")
        tap = OpenTap(tap_fd, **entry["tap"])
        held = {key: by_name[f"{id_}.held-{key}"][0] for key in entry["held"] if f"{id_}.held-{key}" in by_name}
        if any(kind in entry["held"] and kind not in held for kind in KINDS_HELD):
            raise NamespaceUnavailable("it ended while netd was away")
        if kind not in ("exit_fd", "shim", "pidfd", "path", "explicit"):
            raise ValueError(f"lifeline {kind!r}")
        lifeline = Lifeline(kind, by_name.get(names["life"], [-1])[0], path)
        try:
            network = self._new_network(id_, spec, lifeline, held, tap, entry["netns_inode"], entry["created"])
        except BaseException:
            by_name[names["tap"]].pop(0)  # closed by now; our caller lets go of the rest
            raise
        self.networks[id_] = network
        for name in (*names.values(), *(f"{id_}.held-{key}" for key in held)):
            if name in by_name:
                fd, *others = by_name.pop(name)
                self._store.adopt(network, name.split(".", 1)[1], [fd])
                _close_all(others)
        try:
            self._restore_forwards(network, entry, by_name)
            network.rules.restore(entry.get("rules", {}))
        except BaseException:
            self._end(network, "could not be restored")
            raise
        self._watch_all(network)
        logger.info("restored %s", network.name)

    def _restore_forwards(self, network: Network, entry: dict[str, Any], by_name: dict[str, list[int]]) -> None:
        for forward in entry["forwards"]:
            id_, spec, origin = forward["id"], ForwardSpec(**forward["spec"]), forward["origin"]
            key = f"{PORT}{id_}"
            name = f"{network.id}.{key}"
            fds = by_name.pop(name, [])
            try:
                network.restore_forward(id_, spec, origin, fds)
            except NetdError as e:
                logger.warning("%s: %s", network.name, e)
                self._store.let_go(name)
            else:
                whole = network.stored_fds()[key]
                if len(fds) == len(whole):  # else ``changed`` stores those that were bound anew
                    self._store.adopt(network, key, whole)
        network.resume_forward_ids(entry["next_forward_id"])

    # -- start and stop ------------------------------------------------------------------------------------------

    async def start(self, stored: Iterable[tuple[str, int]] = ()) -> None:
        """Start the agent and restore what the service manager kept. Observers are told by ``announce``."""
        loop = asyncio.get_running_loop()
        self._pace, self._unlinks = Pace(loop, clock), Unlinks(loop)
        await self._agent.start()
        self._restore(stored)
        for network in list(self.networks.values()):
            await network.rules.resume()

    def announce(self) -> None:
        """Tell the observers, who have come by now, of the restored networks."""
        for network in list(self.networks.values()):
            self._tell("attached", network)
            self.changed(network)

    async def stop(self) -> None:
        """Let go of everything. With a service manager the networks live on in its store."""
        self._stopping = True
        self._store.settle()
        for watch in self._watches.values():
            watch.close()
        self._watches.clear()
        for network in list(self.networks.values()):
            if self._store.present:
                network.close(kept=True)
            else:
                self._close(network)
            network.release()
        self.networks.clear()
        self._unlinks.close()
        self._host.close()
        self._closers.shutdown()
        await self._agent.stop()
        self._store.close()


def _check_open(lifeline: Lifeline, held: dict[str, int]) -> None:
    """NamespaceUnavailable unless every descriptor that must be there is one."""
    wanted = dict(held)
    if lifeline.kind in ("exit_fd", "shim", "pidfd"):
        wanted[lifeline.kind] = lifeline.fd
    for name, fd in wanted.items():
        try:
            os.fstat(fd)
        except OSError as e:
            raise NamespaceUnavailable(f"the {name} handed over is no open descriptor: {e.strerror}") from None


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        try:
            if fd >= 0:
                os.close(fd)
        except OSError as e:
            logger.error("descriptor %d was not open: %s", fd, e.strerror)
