"""One call of pasta: from the command line to a network that is attached, or to a message and an exit status.

In the background the exit status 0 is the caller's sign that everything is configured (contracts/pasta.md §1.0). A
process stays only where somebody counts on one: in the foreground, with a command, where ``--pid`` names it, and to
take the socket of ``--conf-path`` away in the end.
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
    Print,
    Realpath,
    Release,
    Run,
    SendFd,
    Spawn,
    Stay,
    Step,
    Write,
)
from netd.dialects.descriptors import Descriptors, is_netns
from netd.dialects.names import free_name
from netd.dialects.outcome import Outcome
from netd.dialects.pasta import texts
from netd.dialects.pasta.grammar import Invocation, parse
from netd.dialects.pasta.layout import network_spec_of
from netd.dialects.pasta.reports import LOG, STATS
from netd.dialects.pasta.template import NoSuchInterface
from netd.errors import LimitReached, NetdError, PortUnavailable
from netd.network import PCAP
from netd.rules import RuleFailed
from netd.specs import Lifeline, NetworkSpec

if TYPE_CHECKING:
    from netd.daemon import Daemon
    from netd.network import Network

ATTACH_DEADLINE = 8.0  # seconds; the shim gives up after 10, Podman never
# The key in Network.held of the socket that --conf-path names. It is there to be found; nobody speaks on it.
CONTROL = "pasta_control"
_PROCFS = re.compile(r"/proc/(\d+)/(?:task/\d+/)?ns/net$")
_EPHEMERAL = "/proc/sys/net/ipv4/ip_local_port_range"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


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
        attachment = _Attachment(shim, hello, daemon, call, fds)
        try:
            await attachment.make()
        except Died as error:
            attachment.fail(error)


class _Attachment:
    """One network on its way."""

    def __init__(self, shim: Conversation, hello: Hello, daemon: Daemon, call: Invocation, fds: Descriptors) -> None:
        self._shim = shim
        self._daemon = daemon
        self._call = call
        self._fds = fds
        self._argv0 = hello.argv0
        self._pid = hello.pid
        self._cwd = hello.cwd  # of a call; a process in the background has another
        self._path = ""  # whose unlink ends the network
        self._name = ""
        self._control = ""  # path of the socket that pesto names
        self._warnings = call.warnings

    async def make(self) -> None:
        """All of it, in order: what can be refused is refused before anything is made, ready is said last."""
        call, shim = self._call, self._shim
        spec = await self._begin()
        await self._files()
        background = not call.foreground
        stays = call.foreground or bool(call.pid_file or call.conf_path)
        if self._warnings:
            await self._do(Print(stderr=self._warnings), "Failed to write")
            self._warnings = ""
        if background and stays:
            answer = await shim.ask(Detach())
            if not answer.ok:
                raise Died(f"Failed to fork: {answer.error}")
            self._pid = answer.pid
        if call.pid_file:
            path = os.path.join(self._cwd, call.pid_file)
            await self._do(Write(path=path, text=f"{self._pid}\n"), f"Couldn't open PID file {call.pid_file}")
        name = await free_name(self._daemon, self._name)
        spec = replace(spec, name=name, trace=call.trace and bool(call.log_file), dialect=self._kept())
        network = await self._attach(spec, stays)
        try:
            await self._publish(network)
            if call.command is not None:
                await self._do(Run(), "Failed to start command or shell")
            elif not stays:
                if shim.gone():
                    raise ShimGone("the shim ended before the network was ready")
                shim.tell(Exit(status=0))
            else:
                if background:
                    await shim.ask(Release(status=0))
                shim.tell(Stay())
        except Died as error:
            self.fail(error)  # before the network's end has something to say to the shim
            await self._daemon.detach(network)
        except BaseException:
            await self._daemon.detach(network)
            raise

    def fail(self, error: Died) -> None:
        """Have the shim say why, and end."""
        self._shim.tell(Exit(status=1, stderr=f"{self._warnings}{error}\n"))

    def _kept(self) -> dict[str, str | int]:
        """What later lives of the daemon must know: where pesto looks, and how to go on with log and statistics."""
        call = self._call
        level = "trace" if call.trace else "debug" if call.debug else "warning" if call.quiet else "info"
        kept: dict[str, str | int] = {"control": self._control, "stats": call.stats}
        if call.log_file:
            header = f"{texts.version().splitlines()[0]}: {self._argv0} ({self._pid})"
            kept |= {"log_header": header, "log_size": call.log_size, "log_level": level}
        return {key: value for key, value in kept.items() if value}

    async def _do(self, step: Step, failure: str) -> None:
        answer = await self._shim.ask(step)
        if not answer.ok:
            raise Died(f"{failure}: {answer.error}")

    async def _fd(self, key: str, step: Step, failure: str) -> str:
        answer, fd = await self._shim.ask_fd(step)
        if fd < 0:
            raise Died(f"{failure}: {answer.error}")
        self._fds.add(key, fd)
        return answer.text

    # -- what the command line names -------------------------------------------------------------------------------

    async def _begin(self) -> NetworkSpec:
        """What the network is to be, and its target; a command is started only for one that can be."""
        if self._call.command is not None:
            spec = await self._spec()
            await self._target()
            return spec
        # The host is looked at while the shim is asked for the namespace.
        planned, target = await asyncio.gather(self._spec(), self._target(), return_exceptions=True)
        if isinstance(planned, BaseException):  # is said first
            raise planned
        if isinstance(target, BaseException):
            raise target
        return planned

    async def _spec(self) -> NetworkSpec:
        call, view = self._call, await self._daemon.host_view()
        try:
            return network_spec_of(call, view, self._daemon.name_servers(), self._daemon.search_domains())
        except NoSuchInterface as error:
            if str(error) == call.interface:
                raise Died(f"Invalid interface name {error}: {os.strerror(errno.ENODEV)}") from None
            raise Died("External interface not usable") from None

    async def _target(self) -> None:
        """The namespace, what ends the network, and a name for it."""
        call, shim = self._call, self._shim
        if call.command is not None:
            spawn = Spawn(
                argv=list(call.command),
                hostname=call.hostname or hostname(),
                userns=not call.netns_only,
                pidns=not call.no_pidns,
            )
            told = await self._fd("netns", spawn, "Failed to start command or shell")
            self._warnings += f"{told}\n" if told else ""
            return
        path = f"/proc/{call.pid}/ns/net" if call.pid >= 0 else call.netns
        if call.userns:
            await self._fd("userns", Open(path=call.userns), f"Couldn't open user namespace {call.userns}")
            self._fds.close("userns")  # the namespace's real owner is found by the agent
        procfs = _PROCFS.match(path)
        real = await self._fd("netns", Open(path=path, real=not procfs), f"Couldn't open network namespace {path}")
        if not is_netns(self._fds.get("netns")):
            raise Died(f"Couldn't enter network namespace {path}: {os.strerror(errno.EINVAL)}")
        if procfs:
            if not call.no_netns_quit:
                await self._fd("pidfd", Pidfd(pid=int(procfs[1])), f"Couldn't watch process {procfs[1]}")
            return
        if not real:  # a shim of an earlier netd
            answer = await shim.ask(Realpath(path=path))
            if not answer.ok:
                raise Died(f"Couldn't watch {path}: {answer.error}")
            real = answer.text
        self._name = network_name(real)
        if not call.no_netns_quit:
            self._path = real
            if not exists(self._path):
                raise Died(f"netd: {self._path} cannot be seen from outside of this mount namespace (--no-netns-quit)")

    async def _files(self) -> None:
        """The log, the capture and the control socket, opened where the caller is."""
        call = self._call
        if call.log_file:
            step = Create(path=call.log_file, truncate=True, read=True)
            await self._fd(LOG, step, f"Couldn't open log file {call.log_file}")
        if call.pcap:
            await self._fd(PCAP, Create(path=call.pcap), f"open {call.pcap}")
        if call.stats:
            await self._fd(STATS, SendFd(fd=2), "stderr")
        if call.conf_path:
            listen = Listen(path=call.conf_path, remove=True, always=True)
            await self._fd(CONTROL, listen, f"Couldn't listen on {call.conf_path}")
            self._control = (await self._shim.ask(Realpath(path=call.conf_path))).text

    # -- the network -----------------------------------------------------------------------------------------------

    async def _attach(self, spec: NetworkSpec, stays: bool) -> Network:
        fds = self._fds
        held = {key: fd for key in (LOG, PCAP, CONTROL, STATS) if (fd := fds.take(key)) >= 0}
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
        except NetdError as error:
            raise Died(f"netd: {error}" + (f" ({error.hint})" if error.hint else "")) from None

    async def _publish(self, network: Network) -> None:
        """The ports of -t -u -T -U."""
        call = self._call
        try:
            for table, specs in (("in", call.tcp_ports + call.udp_ports), ("out", call.tcp_ns + call.udp_ns)):
                for spec in specs:
                    for rule in spec.rules:
                        await network.rules.add(table, rule, "pasta", call.freebind, follow=False)
            await network.rules.follow()
        except RuleFailed as failed:
            raise Died(rule_failure(failed).rstrip("\n")) from None
        self._daemon.changed_soon(network)


def farewell(network: Network) -> Exit:
    """The end of a shim that stays: as it should be if the namespace has gone, else a failure."""
    gone = network.lifeline.path and not exists(network.lifeline.path)
    if gone or "pidfd" in network.held:
        return Exit(status=0)
    return Exit(status=1, stderr=f"netd: the network {network.name} was detached\n")


def rule_failure(failed: RuleFailed) -> str:
    """What pasta and pesto say of a rule that cannot be had."""
    if failed.whole:
        return texts.all_listens_failed(failed.rule) + texts.COULD_NOT_LISTEN
    error = failed.error
    if isinstance(error, PortUnavailable):
        said = texts.listen_failed(failed.rule, error.port or failed.rule.first, error.reason)
    else:
        said = f"netd: {error}\n"
    holder = getattr(error, "holder", "")
    if holder:
        said = f"netd: the port is published by network {holder}\n" + said
    return said + ("" if isinstance(error, LimitReached) else texts.COULD_NOT_LISTEN)


def network_name(path: str) -> str:
    """What the path of a namespace tells of a network: its last part, which Podman makes unique; "" if that is odd."""
    name = os.path.basename(path)
    return name if _NAME.fullmatch(name) else ""


def exists(path: str) -> bool:
    """Whether there is something at ``path``, a dangling link included."""
    return os.path.lexists(path)


def hostname() -> str:
    """What a command's namespace is called: after the host (hostname(7))."""
    return f"pasta-{os.uname().nodename}"[:64]
