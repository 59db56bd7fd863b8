"""One call of pasta: from the command line to a network that is attached, or to a message and an exit status.

In the background the exit status 0 is the caller's sign that everything is configured (contracts/pasta.md §1.0). A
process stays only where somebody counts on one: in the foreground, with a command, and where ``--pid`` names it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from netd.attach.conversation import Conversation, ShimGone
from netd.attach.message import (
    Create,
    Detach,
    Exit,
    Hello,
    Listen,
    Open,
    Pidfd,
    Realpath,
    Release,
    Run,
    Spawn,
    Stay,
    Write,
)
from netd.dialects.descriptors import Descriptors, is_netns
from netd.dialects.names import free_name
from netd.dialects.pasta import texts
from netd.dialects.pasta.grammar import Invocation, Outcome, parse
from netd.dialects.pasta.layout import forward_specs_of, network_spec_of
from netd.dialects.pasta.template import NoSuchInterface
from netd.errors import NetdError, PortUnavailable
from netd.specs import Lifeline, NetworkSpec

if TYPE_CHECKING:
    from netd.daemon import Daemon
    from netd.network import Network

ATTACH_DEADLINE = 8.0  # seconds; the shim gives up after 10, Podman never
CONTROL = "pasta_control"  # the key in Network.held of the socket that --conf-path names
LOG, PCAP = "log", "pcap"
_PROCFS = re.compile(r"/proc/(\d+)/(?:task/\d+/)?ns/net$")
_EPHEMERAL = "/proc/sys/net/ipv4/ip_local_port_range"


class Died(Exception):
    """The call ends with exit status 1 and this message."""


def ephemeral_ports() -> range:
    """The ports that the kernel gives to clients (ip(7), ip_local_port_range)."""
    try:
        with open(_EPHEMERAL) as file:
            first, last = map(int, file.read().split())
    except (OSError, ValueError):
        first, last = 32768, 60999
    return range(first, last + 1)


async def serve(shim: Conversation, hello: Hello, daemon: Daemon) -> None:
    """Answer the shim that ``hello`` describes: help, a mistake, or a network and its life."""
    call = parse(hello.argv0, hello.argv, ephemeral_ports())
    if isinstance(call, Outcome):
        shim.tell(Exit(status=call.status, stdout=call.stdout, stderr=call.stderr))
        return
    with Descriptors() as fds:
        try:
            await _Attachment(shim, daemon, call, fds).make()
        except Died as error:
            shim.tell(Exit(status=1, stderr=f"{call.warnings}{error}\n"))


class _Attachment:
    """One network on its way."""

    def __init__(self, shim: Conversation, daemon: Daemon, call: Invocation, fds: Descriptors) -> None:
        self._shim = shim
        self._daemon = daemon
        self._call = call
        self._fds = fds
        self._path = ""  # whose unlink ends the network
        self._name = ""
        self._control = ""

    async def make(self) -> None:
        """All of it, in order: nothing is configured before everything is understood, ready is said last."""
        call, shim = self._call, self._shim
        view = await self._daemon.host_view()
        try:
            network_spec_of(call, view, "", ())
        except NoSuchInterface as error:
            raise Died(texts.no_such_interface(str(error), call)) from None
        await self._target()
        await self._files()
        stays = call.foreground or call.command is not None or bool(call.pid_file)
        background = not (call.foreground or call.command is not None)
        if stays and background:
            answer = await shim.ask(Detach())
            if not answer.ok:
                raise Died(f"Failed to fork: {answer.error}")
            pid = answer.pid
        else:
            pid = self._pid
        if call.pid_file:
            answer = await shim.ask(Write(path=call.pid_file, text=f"{pid}\n"))
            if not answer.ok:
                raise Died(f"PID file open: {answer.error}")
        name = await free_name(self._daemon, self._name)
        spec = network_spec_of(call, view, name, self._daemon.name_servers())
        spec = replace(spec, control=self._control)
        network = await self._attach(spec, stays)
        try:
            await self._publish(network)
            if call.command is not None:
                answer = await shim.ask(Run())
                if not answer.ok:
                    raise Died(f"Cannot run the command: {answer.error}")
                shim.tell(Stay(stderr=call.warnings))
            elif stays:
                if background:
                    await shim.ask(Release(status=0, stderr=call.warnings))
                    shim.tell(Stay())
                else:
                    shim.tell(Stay(stderr=call.warnings))
            elif shim.gone():
                raise ShimGone("the shim ended before the network was ready")
            else:
                shim.tell(Exit(status=0, stderr=call.warnings))
        except BaseException:
            await self._daemon.detach(network)
            raise

    # -- what the command line names -------------------------------------------------------------------------------

    async def _target(self) -> None:
        """The namespace, what ends the network, and a name for it."""
        call, shim, fds = self._call, self._shim, self._fds
        if call.command is not None:
            step = Spawn(argv=list(call.command), hostname=call.hostname, userns=not call.netns_only)
            answer, fd = await shim.ask_fd(step)
            if fd < 0:
                raise Died(f"Cannot start the command: {answer.error}")
            fds.add("netns", fd)
            return
        path = f"/proc/{call.pid}/ns/net" if call.pid else call.netns
        if call.userns:
            answer, fd = await shim.ask_fd(Open(path=call.userns))
            if fd < 0:
                raise Died(f"Couldn't open user namespace {call.userns}: {answer.error}")
            os.close(fd)  # the namespace's real owner is found by the agent
        answer, fd = await shim.ask_fd(Open(path=path))
        if fd < 0:
            raise Died(f"Couldn't open network namespace {path}: {answer.error}")
        fds.add("netns", fd)
        if not is_netns(fd):
            raise Died(f"Couldn't enter network namespace {path}: {os.strerror(errno.EINVAL)}")
        found = _PROCFS.match(path)
        if not found:
            answer = await shim.ask(Realpath(path=path))
            self._path = answer.text if answer.ok else os.path.abspath(path)
            self._name = network_name(self._path)
        if call.no_netns_quit:
            self._path = ""
        elif found:
            answer, fd = await shim.ask_fd(Pidfd(pid=int(found[1])))
            if fd < 0:
                raise Died(f"Couldn't watch process {found[1]}: {answer.error}")
            fds.add("pidfd", fd)
        elif not os.path.lexists(self._path):
            raise Died(f"netd: {self._path} is not to be seen from here, only --no-netns-quit would do without")

    async def _files(self) -> None:
        """The log, the capture and the control socket, opened where the caller is."""
        call, shim, fds = self._call, self._shim, self._fds
        for key, path, append in ((LOG, call.log_file, False), (PCAP, call.pcap, False)):
            if path:
                answer, fd = await shim.ask_fd(Create(path=path, mode=0o600, append=append, truncate=True))
                if fd < 0:
                    raise Died(f"Couldn't open {'log' if key == LOG else 'packet capture'} file {path}: {answer.error}")
                fds.add(key, fd)
        if call.conf_path:
            answer, fd = await shim.ask_fd(Listen(path=call.conf_path, remove=True))
            if fd < 0:
                raise Died(f"Couldn't listen on {call.conf_path}: {answer.error}")
            fds.add(CONTROL, fd)
            answer = await shim.ask(Realpath(path=call.conf_path))
            self._control = answer.text

    # -- the network -----------------------------------------------------------------------------------------------

    async def _attach(self, spec: NetworkSpec, stays: bool) -> Network:
        fds = self._fds
        held = {key: fd for key in (LOG, PCAP, CONTROL) if (fd := fds.take(key)) >= 0}
        if stays:
            lifeline = Lifeline("shim", self._shim.lifeline(), self._path)
            if fds.get("pidfd") >= 0:
                held["pidfd"] = fds.take("pidfd")
        elif fds.get("pidfd") >= 0:
            lifeline = Lifeline("pidfd", fds.take("pidfd"))
        else:
            lifeline = Lifeline("path" if self._path else "explicit", path=self._path)
        try:
            async with asyncio.timeout(ATTACH_DEADLINE):
                return await self._daemon.attach(spec, fds.take("netns"), lifeline, held)
        except TimeoutError:
            raise Died(f"netd: the network was not ready in {ATTACH_DEADLINE:g} s") from None
        except PortUnavailable as error:
            raise Died(f"netd: {error}") from None
        except NetdError as error:
            raise Died(f"netd: {error}" + (f" ({error.hint})" if error.hint else "")) from None

    async def _publish(self, network: Network) -> None:
        """The ports of -t and -u that are there from the start."""
        weak: dict[str, list[NetdError | None]] = {}
        for option, spec in forward_specs_of(self._call):
            error: NetdError | None = None
            try:
                network.add_forward(spec, "pasta")
            except NetdError as e:
                error = e
            if spec.best_effort:
                weak.setdefault(option, []).append(error)
                await asyncio.sleep(0)  # there may be a hundred of these
            elif error is not None:
                raise Died(texts.listen_failed(spec, error))
        for errors in weak.values():
            if all(errors):
                raise Died(texts.listen_failed(spec, errors[0]))
        if network.port_count():
            self._daemon.changed(network)


def network_name(path: str) -> str:
    """What the path of a namespace tells of a network: its last part, which Podman makes unique; "" if that is odd."""
    name = os.path.basename(path)
    return name if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name) else ""
