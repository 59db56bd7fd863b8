"""slirp4netns' --api-socket: one JSON request a connection, answered as slirp4netns does, to the byte.

The listener was made by the shim and is the network's ``held["slirp_api"]``, so it outlives a restart of the daemon.
What crashes or stalls slirp4netns (a request without ``proto``, a silent client) gets the nearest of its own errors,
or a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import json
import logging
import math
import os
import socket
from ipaddress import AddressValueError, IPv4Address
from typing import TYPE_CHECKING, Any

from netd.errors import InvalidSpec, NetdError, NoSuchPort
from netd.specs import ForwardSpec

if TYPE_CHECKING:
    from netd.daemon import Daemon
    from netd.network import Network

log = logging.getLogger(__name__)

HELD = "slirp_api"  # the key in Network.held
MAX_REQUEST = 4095  # bytes
MAX_CLIENTS = 32  # of one network; one more sends the longest silent one away
DEADLINE = 30.0  # seconds for a client to ask, and again to take the answer
_OUT_OF_FDS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class ApiSockets:
    """Serves the api socket of every network that has one, also of those that were restored."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._served: dict[str, _ApiSocket] = {}

    async def start(self) -> None:
        """Serve the networks that are there, and from now on each that comes."""
        self._daemon.observers.append(self._observe)
        for network in list(self._daemon.networks.values()):
            self._observe("attached", network)

    async def stop(self) -> None:
        """Stop serving; the sockets stay with their networks."""
        if self._observe in self._daemon.observers:
            self._daemon.observers.remove(self._observe)
        served, self._served = self._served, {}
        await asyncio.gather(*(api.close() for api in served.values()))

    def _observe(self, event: str, network: Network) -> None:
        if event == "attached" and HELD in network.held and network.id not in self._served:
            self._served[network.id] = _ApiSocket(self._daemon, network)
        elif event == "detached" and (api := self._served.pop(network.id, None)):
            api.close_now()


class _ApiSocket:
    """One network's listener and its clients."""

    def __init__(self, daemon: Daemon, network: Network) -> None:
        self._daemon = daemon
        self._network = network
        # A duplicate of our own, so that it does not matter when the network closes the other.
        self._listener = socket.socket(fileno=os.dup(network.held[HELD]))
        self._listener.setblocking(False)
        self._clients: dict[asyncio.Task[None], None] = {}  # in order of arrival
        self._loop = asyncio.get_running_loop()
        self._listen()

    def close_now(self) -> None:
        """Stop listening; the clients are cancelled and close as the loop turns."""
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        for task in self._clients:
            task.cancel()

    async def close(self) -> None:
        self.close_now()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _listen(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            if error.errno not in _OUT_OF_FDS:
                raise
            log.warning("api socket of %s: %s", self._network.name, error.strerror)
            self._loop.remove_reader(self._listener.fileno())  # else the readable listener would spin
            self._loop.call_later(0.1, self._listen)
            return
        if len(self._clients) >= MAX_CLIENTS:
            oldest = next(iter(self._clients))
            del self._clients[oldest]
            oldest.cancel()
        task = self._loop.create_task(self._serve(client))
        self._clients[task] = None
        task.add_done_callback(functools.partial(self._done, client))

    def _done(self, client: socket.socket, task: asyncio.Task[None]) -> None:
        client.close()  # here and not in the task, which may have been cancelled before it began
        self._clients.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("api socket of %s", self._network.name, exc_info=error)

    async def _serve(self, client: socket.socket) -> None:
        client.setblocking(False)
        try:
            async with asyncio.timeout(DEADLINE):
                # slirp4netns reads once: what comes in two parts is judged by the first.
                request = await self._loop.sock_recv(client, MAX_REQUEST + 1)
            reply, changed = answer(self._network, request)
            if changed:
                self._daemon.changed(self._network)
            async with asyncio.timeout(DEADLINE):
                await self._loop.sock_sendall(client, reply)
            client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(BlockingIOError):
                client.recv(65536)  # bytes left unread would reset the connection and lose the reply
        except (TimeoutError, ConnectionError):
            return
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise


class _BadRequest(Exception):
    """What follows ``bad request: ``."""


def answer(network: Network, request: bytes) -> tuple[bytes, bool]:
    """The reply to one request, which has been carried out, and whether it changed the forwards."""
    try:
        reply = _carry_out(network, request)
    except _BadRequest as error:
        reply = {"error": {"desc": f"bad request: {error}"}}
    return json.dumps(reply, separators=(",", ":")).encode(), "return" in reply


def _carry_out(network: Network, request: bytes) -> dict[str, Any]:
    if len(request) > MAX_REQUEST:
        raise _BadRequest("too large message")
    message = _parse(request)
    if not isinstance(message, dict):
        raise _BadRequest("json_object() failed")
    command = message.get("execute")
    if not isinstance(command, str):
        raise _BadRequest("no execute found")
    arguments = message.get("arguments")
    if not isinstance(arguments, dict):
        arguments = {}
    if command == "add_hostfwd":
        return {"return": {"id": _add(network, arguments)}}
    if command == "list_hostfwd":
        return {"entries": _list(network)}
    if command == "remove_hostfwd":
        _remove(network, arguments)
        return {"return": {}}
    raise _BadRequest("unknown execute")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a key comes twice")
    return members


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # NaN and Infinity as words, and 1e999
        raise ValueError("not a number")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite)


def _parse(request: bytes) -> Any:
    """JSON as parson takes it: what follows the value is not read, a key that comes twice is a mistake."""
    try:
        text = request.decode("utf-8-sig", "surrogateescape").lstrip(" \t\r\n\v\f")
        return _DECODER.raw_decode(text)[0]
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise _BadRequest("cannot parse JSON") from None


def _add(network: Network, arguments: dict[str, Any]) -> int:
    bad = "add_hostfwd: bad arguments."
    protocol = arguments.get("proto")
    if protocol not in ("tcp", "udp"):
        raise _BadRequest(bad + "proto")
    host_ip = _address(arguments, "host_addr", bad)
    host_port = _port(arguments, "host_port", bad)
    guest_ip = _address(arguments, "guest_addr", bad)
    guest_port = _port(arguments, "guest_port", bad)
    spec = ForwardSpec(
        protocol=protocol,
        host_port=host_port,
        container_port=guest_port,
        host_ip=host_ip or "0.0.0.0",
        container_ip=guest_ip,
    )
    try:
        return network.add_forward(spec, "slirp4netns").id
    except InvalidSpec as error:
        log.info("api socket of %s: %s", network.name, error)
        if guest_ip:  # the one value that only the network can judge
            raise _BadRequest(bad + "guest_addr") from None
        raise _BadRequest("add_hostfwd: slirp_add_hostfwd failed") from None
    except NetdError as error:
        log.info("api socket of %s: %s", network.name, error)
        raise _BadRequest("add_hostfwd: slirp_add_hostfwd failed") from None


def _address(arguments: dict[str, Any], key: str, bad: str) -> str:
    value = arguments.get(key)
    if not isinstance(value, str) or not value:
        return ""  # parson gives NULL for what is no string, which is the same as absent
    try:
        return str(IPv4Address(value))
    except AddressValueError:
        raise _BadRequest(bad + key) from None


def _port(arguments: dict[str, Any], key: str, bad: str) -> int:
    number = _whole(arguments.get(key))
    if not 1 <= number <= 65535:
        raise _BadRequest(bad + key)
    return number


def _whole(value: object) -> int:
    """A JSON number as C stores it in an int, fraction cut off; 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**31:
        return 0
    return int(value)


def _list(network: Network) -> list[dict[str, Any]]:
    """Every forward, whoever made it; a range has one entry a port, all with its id."""
    entries = []
    for forward in network.forwards():
        spec = forward.spec
        for offset in range(spec.range):
            entries.append(
                {
                    "id": forward.id,
                    "proto": spec.protocol,
                    "host_addr": spec.host_ip or "0.0.0.0",
                    "host_port": spec.host_port + offset,
                    "guest_addr": spec.container_ip or network.spec.guest_ip,
                    "guest_port": spec.container_port + offset,
                }
            )
    return entries


def _remove(network: Network, arguments: dict[str, Any]) -> None:
    try:
        network.remove_forward(_whole(arguments.get("id")))
    except NoSuchPort:
        raise _BadRequest("remove_hostfwd: bad arguments.id") from None
    except NetdError as error:
        log.info("api socket of %s: %s", network.name, error)
        raise _BadRequest("remove_hostfwd: slirp_remove_hostfwd failed") from None
