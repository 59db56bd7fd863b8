"""One call of slirp4netns: from the command line to a network that is attached, or to a message and an exit status."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import select
import socket
import struct
from dataclasses import replace
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from netd.attach.conversation import Conversation, ShimGone
from netd.attach.message import Exit, Hello, Listen, Open, SendFd, Stay
from netd.dialects.descriptors import Descriptors, is_netns
from netd.dialects.handed_tap import HandedTap, handed_tap
from netd.dialects.names import free_name
from netd.dialects.slirp4netns import texts
from netd.dialects.slirp4netns.grammar import Invocation, Outcome, parse
from netd.errors import NamespaceUnavailable, NetdError, NetworkExists, TapUnavailable
from netd.specs import Lifeline, NetworkSpec

if TYPE_CHECKING:
    from netd.daemon import Daemon
    from netd.network import Network

ATTACH_DEADLINE = 8.0  # seconds; the shim gives up after 10, Podman never

_SIOCGIFADDR = 0x8915
_SUN_PATH = 108  # unix(7)
_PODMAN_LOG = re.compile(r"/slirp4netns-([0-9a-f]{64}|rootless-netns)\.log(?: \(deleted\))?$")
_PODMAN_API = re.compile(r"/([0-9a-f]{64})\.net$")


class _Outbound(NamedTuple):
    """Source addresses of the host's sockets; "" is the kernel's choice."""

    ipv4: str
    ipv6: str


async def serve(shim: Conversation, hello: Hello, daemon: Daemon) -> None:
    """Answer the shim that ``hello`` describes: help, a mistake, or a network and its life."""
    call = parse(hello.argv0, hello.argv, podman=called_by_podman(hello))
    if isinstance(call, Outcome):
        outcome: Outcome | None = call
    else:
        with Descriptors() as fds:
            outcome = await _run(shim, hello, daemon, call, fds)
    if outcome is not None:
        shim.tell(Exit(status=outcome.status, stdout=outcome.stdout, stderr=outcome.stderr))


def called_by_podman(hello: Hello) -> bool:
    """Whether Podman or Buildah made this call: by the variables they set, or by Podman's log file."""
    return "_CONTAINERS_USERNS_CONFIGURED" in hello.env or _PODMAN_LOG.search(hello.fd1) is not None


def network_name(hello: Hello, api_socket: str) -> str:
    """What Podman's log file or api socket tells of the container: 12 digits of its id; "" if nothing does."""
    found = _PODMAN_LOG.search(hello.fd1) or _PODMAN_API.search(api_socket)
    if found is None:
        return ""
    return found[1] if found[1] == "rootless-netns" else found[1][:12]


async def _run(shim: Conversation, hello: Hello, daemon: Daemon, call: Invocation, fds: Descriptors) -> Outcome | None:
    """Attach. None when the shim stays or has been told to exit."""
    outbound = interface_ipv4(call.outbound)
    if outbound is None:
        return _failed(call, "outbound-addr has to be valid ipv4 address or interface name.")
    outbound6 = interface_ipv6(call.outbound6)
    if outbound6 is None:
        return _failed(call, "outbound-addr has to be valid ipv4 address or iterface name.")
    refused = await _gather(shim, hello, call, fds)
    if refused is not None:
        return refused
    text = call.warnings + texts.started(
        call.network, call.mtu, call.api_socket, outbound, outbound6, call.mac, not call.disable_host_loopback
    )
    if call.exit_fd >= 0 and fds.get("exit_fd") < 0:  # not open: slirp4netns starts, says that it is ready, and ends
        _say_ready(fds)
        return Outcome(0, text, "exitfd event\ndo_slirp is exiting\n")
    if call.exit_fd >= 0 and not _hangs_up(fds.get("exit_fd")):
        fds.close("exit_fd")

    # Podman holds the other end of the exit fd and forgets the process: none is needed (DESIGN §5).
    leaves = fds.get("exit_fd") >= 0 and not call.api_socket and _PODMAN_LOG.search(hello.fd1) is not None
    network = await _attach(shim, hello, daemon, call, fds, _Outbound(outbound, outbound6), leaves)
    if isinstance(network, Outcome):
        return network
    try:
        if leaves:
            if shim.gone():
                raise ShimGone("the shim ended before the network was ready")
            _say_ready(fds)
            with contextlib.suppress(ShimGone):
                shim.tell(Exit(status=0, stdout=text))
        else:
            shim.tell(Stay(stdout=text))
            _say_ready(fds)
    except ShimGone:
        await daemon.detach(network)
        raise
    return None


async def _gather(shim: Conversation, hello: Hello, call: Invocation, fds: Descriptors) -> Outcome | None:
    """Have the shim open and send what the command line names."""
    if call.userns_path:
        answer, fd = await shim.ask_fd(Open(path=call.userns_path))
        if fd >= 0:
            os.close(fd)  # it has to exist; the namespace's real owner is found by the agent
        elif answer.errno in (errno.ENOENT, errno.ENOTDIR):
            return _usage(hello, call, f"userns path doesn't exist: {call.userns_path}\n")

    refused = await (_gather_target(shim, hello, call, fds) if call.tap_fd < 0 else _gather_tap(shim, call, fds))
    if refused is not None:
        return refused

    for name, number in (("exit_fd", call.exit_fd), ("ready_fd", call.ready_fd)):
        if number >= 0:
            answer, fd = await shim.ask_fd(SendFd(fd=number))
            if fd >= 0:
                fds.add(name, fd)

    if call.api_socket:
        ending = "do_slirp is exiting\ndo_slirp failed\nparent failed\n"
        if len(call.api_socket.encode("utf-8", "surrogateescape")) >= _SUN_PATH:
            return _failed(call, f"the specified API socket path is too long (>= {_SUN_PATH})\n{ending}")
        # After --enable-sandbox the real program can no longer see its socket, and leaves it behind.
        answer, fd = await shim.ask_fd(Listen(path=call.api_socket, remove=not call.sandbox))
        if fd < 0:
            return _failed(call, f"api_bindlisten: bind: {answer.error}\n{ending}")
        fds.add("slirp_api", fd)
    return None


async def _gather_target(shim: Conversation, hello: Hello, call: Invocation, fds: Descriptors) -> Outcome | None:
    """The namespace that is named by a pid or a path."""
    if not _is_ifname(call.ifname):
        return _failed(call, f"ioctl(TUNSETIFF): {os.strerror(errno.EINVAL)}\nchild failed(1)\n")
    path = call.target if call.by_path else f"/proc/{call.target}/ns/net"
    answer, fd = await shim.ask_fd(Open(path=path))
    if fd < 0:
        if call.by_path and answer.errno in (errno.ENOENT, errno.ENOTDIR):
            reason = os.strerror(answer.errno)
            return _usage(hello, call, f"existing path expected when --netns-type=path: {reason}\n")
        return _failed(call, f"{path}: {answer.error}\nchild failed(1)\n")
    fds.add("netns", fd)
    if not is_netns(fd):
        return _failed(call, f"setns(CLONE_NEWNET): {os.strerror(errno.EINVAL)}\nchild failed(1)\n")
    return None


async def _gather_tap(shim: Conversation, call: Invocation, fds: Descriptors) -> Outcome | None:
    """The caller's own TAP. What it is, is looked at when it is attached."""
    answer, fd = await shim.ask_fd(SendFd(fd=call.tap_fd))
    if fd < 0:
        return _failed(call, f"netd: --netns-type=tapfd {call.tap_fd}: {answer.error}\nparent failed\n")
    fds.add("tap", fd)
    return None


async def _attach(
    shim: Conversation,
    hello: Hello,
    daemon: Daemon,
    call: Invocation,
    fds: Descriptors,
    outbound: _Outbound,
    leaves: bool,
) -> Network | Outcome:
    name = await free_name(daemon, network_name(hello, call.api_socket))
    handed: HandedTap | None = None
    if call.tap_fd >= 0:
        try:
            handed = handed_tap(fds.get("tap"), daemon.settings.offload)
        except TapUnavailable as error:
            return _failed(call, f"netd: --netns-type=tapfd {call.tap_fd}: {error}\nparent failed\n")
        if handed.netns_fd >= 0:
            fds.add("netns", handed.netns_fd)
    spec = spec_of(call, name, handed.ifname if handed else call.ifname, outbound)
    lifeline = Lifeline("exit_fd", fds.take("exit_fd")) if leaves else Lifeline("shim", shim.lifeline())
    held = {key: fd for key in ("exit_fd", "slirp_api") if (fd := fds.take(key)) >= 0}
    fds.take("tap")
    try:
        async with asyncio.timeout(ATTACH_DEADLINE):
            return await daemon.attach(spec, fds.take("netns"), lifeline, held, handed.tap if handed else None)
    except TimeoutError:
        return _failed(call, f"netd: the network was not ready in {ATTACH_DEADLINE:g} s\nchild failed(1)\n")
    except NetdError as error:
        return _failed(call, refusal(error))


def farewell(network: Network) -> Exit:
    """The end of a shim that stays: as it should be by the exit fd, else a failure."""
    if "exit_fd" in network.held and _hung_up(network.held["exit_fd"]):
        return Exit(status=0, stderr="exitfd event\ndo_slirp is exiting\n")
    return Exit(status=1, stderr=f"netd: the network {network.name} was detached\n")


def _hung_up(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLHUP)
    return any(events & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, events in poll.poll(0))


def spec_of(call: Invocation, name: str, ifname: str, outbound: _Outbound) -> NetworkSpec:
    """What is to be attached: slirp4netns' addresses, those of IPv6 fixed as they are there."""
    base = call.network.network_address
    spec = NetworkSpec(
        name=name,
        origin="slirp4netns",
        ifname=ifname,
        configure=call.configure,
        mtu=call.mtu,
        mac=call.mac,
        cidr=str(call.network),
        guest_ip=str(base + 100),
        gateway_ip=str(base + 2),
        dns_ip="" if call.disable_dns else str(base + 3),
        allow_host_loopback=not call.disable_host_loopback,
        outbound_ip=outbound.ipv4,
    )
    if not call.enable_ipv6:
        return spec
    return replace(
        spec,
        cidr6="fd00::/64",
        gateway_ip6="fd00::2",
        dns_ip6="" if call.disable_dns else "fd00::3",
        router_ip6="fe80::2",
        outbound_ip6=outbound.ipv6,
    )


def refusal(error: NetdError) -> str:
    """Why there is no network: in our words, then in slirp4netns' where it has some for that."""
    reason = f"netd: {error}" + (f" ({error.hint})" if error.hint else "")
    if isinstance(error, NamespaceUnavailable):
        reason += f"\nsetns(CLONE_NEWNET): {os.strerror(errno.EPERM)}"
    elif isinstance(error, NetworkExists):
        reason += f"\nioctl(TUNSETIFF): {os.strerror(errno.EBUSY)}"
    return f"{reason}\nchild failed(1)\n"


def _say_ready(fds: Descriptors) -> None:
    """Write "1", once and last. Like slirp4netns, do not mind a descriptor that takes nothing."""
    fd = fds.get("ready_fd")
    if fd < 0:
        return
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if poll.poll(0):  # a full pipe must not hold the daemon
        with contextlib.suppress(OSError):
            os.write(fd, b"1")
    fds.close("ready_fd")


def _failed(call: Invocation, message: str) -> Outcome:
    return Outcome(1, call.warnings, message)


def _usage(hello: Hello, call: Invocation, message: str) -> Outcome:
    return Outcome(1, call.warnings + texts.usage(hello.argv0, called_by_podman(hello)), message)


def _is_ifname(name: str) -> bool:
    """What the kernel takes (dev_valid_name), less what it would make a name from ("" and "tap%d")."""
    return name not in ("", ".", "..") and not any(c in "/:%" or c.isspace() for c in name)


def _hangs_up(fd: int) -> bool:
    """Whether ``fd`` is of a kind that can hang up: epoll refuses files, directories and /dev/null (EPERM)."""
    with select.epoll() as epoll:
        try:
            epoll.register(fd, select.EPOLLHUP)
        except PermissionError:
            return False
    return True


def interface_ipv4(text: str) -> str | None:
    """An address as it is, an interface's first address for its name, "" for "". None where there is none."""
    if not text:
        return ""
    try:
        return str(IPv4Address(text))
    except AddressValueError:
        pass
    name = text.encode("utf-8", "surrogateescape")
    if len(name) > 15:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            # struct ifreq: the name, then a sockaddr_in whose address is at 4 (netdevice(7))
            answer = fcntl.ioctl(sock.fileno(), _SIOCGIFADDR, struct.pack("16s24x", name))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def interface_ipv6(text: str) -> str | None:
    """The same for IPv6, by /proc/net/if_inet6; link-local addresses only where there is no other."""
    if not text:
        return ""
    if "%" not in text:
        try:
            return str(IPv6Address(text))
        except AddressValueError:
            pass
    found: list[IPv6Address] = []
    try:
        with open("/proc/net/if_inet6", encoding="utf-8", errors="surrogateescape") as table:
            for line in table:
                fields = line.split()
                if fields[-1] == text:
                    found.append(IPv6Address(bytes.fromhex(fields[0])))
    except OSError:
        return None
    found.sort(key=lambda address: address.is_link_local)
    return str(found[0]) if found else None
