"""The agent: a process of its own that enters namespaces, so that the daemon never has to.

``setns(2)`` into a user namespace needs a single-threaded process and cannot be undone. The daemon therefore keeps
this small process; for each request it forks, and the child

    asks the network namespace for its owning user namespace (ioctl_ns(2)), enters both,
    opens the TAP there, configures it over rtnetlink(7), sends its fd back, and is gone.

One SEQPACKET socket, made by the daemon and passed by number, carries one JSON object per message:

    agent -> daemon   {"agent": 1}                                       once, when it can serve
    daemon -> agent   {"id": 7, "plan": {...}} + the namespace's fd      plan: the fields of TapPlan
    agent -> daemon   {"id": 7, "mac": ..., "vnet_hdr": ..., "offload": ...} + the TAP's fd
                      {"id": 7, "error": CODE, "message": ..., "hint": ...}         code: of netd.errors

It ends when the socket closes. It ignores the terminal's signals; a child that crashes or hangs costs one request.

Sources: namespaces(7), user_namespaces(7), ioctl_ns(2), rtnetlink(7).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import importlib.util
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
import traceback
import types
from typing import Any, NoReturn

from netd.errors import AgentUnavailable, NamespaceUnavailable, NetdError, TapUnavailable
from netd.netns.channel import MESSAGE_MAX, PROTOCOL, receive, send
from netd.netns.plan import TapPlan
from netd.netns.tun import identity, open_tap

CHILDREN_MAX = 16  # requests at work at once; further ones wait in the socket
CHILD_SECONDS = 4.0  # a child's life, shorter than the daemon's patience

# linux/nsfs.h, in the encoding of asm-generic/ioctl.h (x86, arm, riscv, s390, loongarch).
NS_GET_USERNS, NS_GET_NSTYPE = 0xB701, 0xB703
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000

NLMSGHDR = struct.Struct("=IHHII")
RTM_NEWLINK, RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR, RTM_NEWROUTE = 16, 20, 21, 22, 24
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_CREATE = 0x1, 0x4, 0x300, 0x100, 0x400
IFF_UP = 0x1
RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST = 254, 4, 0, 1

PR_SET_DUMPABLE, PR_SET_NAME = 4, 15


def import_messages() -> tuple[Any, Any, Any]:
    """pyroute2's three message classes: link, address, route.

    pyroute2/__init__.py imports all of the library (asyncio, NDB, …): 20 MB and 110 ms which three classes do not
    need. An empty package object of that name and path lets their modules be imported alone (0.7.12 to 0.9.7).
    """
    spec = importlib.util.find_spec("pyroute2")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("pyroute2 is not installed")
    bare = types.ModuleType("pyroute2")
    bare.__path__ = list(spec.submodule_search_locations)
    sys.modules["pyroute2"] = bare
    try:
        return _messages()
    except (ImportError, AttributeError):  # a release that is laid out otherwise: import it the plain way
        for name in [name for name in sys.modules if name.split(".")[0] == "pyroute2"]:
            del sys.modules[name]
        return _messages()


def _messages() -> tuple[Any, Any, Any]:
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.rtmsg import rtmsg

    return ifinfmsg, ifaddrmsg, rtmsg


libc = ctypes.CDLL(None, use_errno=True)
ifinfmsg, ifaddrmsg, rtmsg = import_messages()


def setns(fd: int, kind: int) -> None:
    """setns(2); os.setns is of Python 3.12. Raises OSError."""
    if libc.setns(fd, kind) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


# --- the namespace ---------------------------------------------------------------------------------------------


def enter(netns_fd: int) -> None:
    """Moves this process into the network namespace, by way of the user namespace that owns it.

    The owner of a user namespace, outside of it, has all capabilities in it and in its descendants
    (user_namespaces(7)), so this needs no privilege. Raises NamespaceUnavailable.
    """
    try:
        # nsfs inodes are regular files; nothing else gets an ioctl from us.
        if not stat.S_ISREG(os.fstat(netns_fd).st_mode) or fcntl.ioctl(netns_fd, NS_GET_NSTYPE) != CLONE_NEWNET:
            raise NamespaceUnavailable("this is not a network namespace")
    except OSError as e:
        raise NamespaceUnavailable(
            "this is not a network namespace",
            "a namespace's path outside of the mount namespace that has it is an empty file",
        ) from e
    try:
        userns_fd = fcntl.ioctl(netns_fd, NS_GET_USERNS)
    except OSError as e:
        raise _not_ours(e) from e
    try:
        owner, own = os.fstat(userns_fd), os.stat("/proc/self/ns/user")
        if (owner.st_dev, owner.st_ino) != (own.st_dev, own.st_ino):  # entering one's own is EINVAL
            setns(userns_fd, CLONE_NEWUSER)
        setns(netns_fd, CLONE_NEWNET)
    except OSError as e:
        raise _not_ours(e) from e
    finally:
        os.close(userns_fd)


def _not_ours(e: OSError) -> NamespaceUnavailable:
    if e.errno == errno.EPERM:
        return NamespaceUnavailable(
            f"the network namespace is not of user {os.getuid()}",
            "its user namespace must be made by the user that netd runs as",
        )
    return NamespaceUnavailable(f"the network namespace cannot be entered: {e.strerror}")


# --- rtnetlink -------------------------------------------------------------------------------------------------


class Rtnetlink:
    """One request at a time over a plain netlink socket of this namespace; pyroute2 spells the messages."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def change(self, what: str, kind: int, message: Any, flags: int = 0) -> None:
        """Sends ``message`` and waits for the kernel's ACK. Raises TapUnavailable, saying what failed."""
        self._send(kind, message, NLM_F_ACK | flags)
        while True:
            for sort, sequence, body in self._receive():
                if sort == NLMSG_ERROR and sequence == self._sequence:
                    code = -struct.unpack_from("=i", body)[0]
                    if code:
                        raise TapUnavailable(f"{what}: {os.strerror(code)}")
                    return

    def addresses(self, index: int) -> list[tuple[str, int]]:
        """The IPv4 addresses of interface ``index``: (literal, prefix length)."""
        message = ifaddrmsg()
        message["family"] = socket.AF_INET
        self._send(RTM_GETADDR, message, NLM_F_DUMP)
        found: list[tuple[str, int]] = []
        while True:
            for sort, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if sort in (NLMSG_DONE, NLMSG_ERROR):
                    return found
                # struct ifaddrmsg: family, prefixlen, flags, scope, index; IFA_LOCAL (2) among the attributes
                _, prefix, _, _, of = struct.unpack_from("=BBBBI", body)
                offset = 8
                while of == index and offset + 4 <= len(body):
                    length, attribute = struct.unpack_from("=HH", body, offset)
                    if attribute == 2:
                        found.append((socket.inet_ntop(socket.AF_INET, body[offset + 4 : offset + 8]), prefix))
                    offset += max(4, (length + 3) & ~3)

    def _send(self, kind: int, message: Any, flags: int) -> None:
        self._sequence += 1
        message["header"]["type"] = kind
        message["header"]["flags"] = NLM_F_REQUEST | flags
        message["header"]["sequence_number"] = self._sequence
        message.encode()
        self._socket.send(message.data)

    def _receive(self) -> list[tuple[int, int, bytes]]:
        data = self._socket.recv(MESSAGE_MAX)
        found, offset = [], 0
        while offset + NLMSGHDR.size <= len(data):
            length, kind, _, sequence, _ = NLMSGHDR.unpack_from(data, offset)
            found.append((kind, sequence, data[offset + NLMSGHDR.size : offset + length]))
            offset += max(NLMSGHDR.size, (length + 3) & ~3)
        return found


def configure(plan: TapPlan, ifname: str, persistent: bool) -> None:
    """lo and the TAP up, with the plan's MTU, MAC, queue, address and default route. Raises TapUnavailable.

    Every step replaces what is there, so a second run, on a namespace that has all this and interfaces of others,
    ends in the same state.
    """
    index = socket.if_nametoindex(ifname)
    rtnl = Rtnetlink()
    try:
        rtnl.change("lo", RTM_NEWLINK, _link(socket.if_nametoindex("lo"), up=True))
        rtnl.change(f"{ifname}: MTU {plan.mtu}", RTM_NEWLINK, _link(index, ("IFLA_MTU", plan.mtu)))
        queue = ("IFLA_TXQLEN", plan.txqueuelen)
        rtnl.change(f"{ifname}: txqueuelen {plan.txqueuelen}", RTM_NEWLINK, _link(index, queue))
        if plan.mac:
            rtnl.change(f"{ifname}: MAC {plan.mac}", RTM_NEWLINK, _link(index, ("IFLA_ADDRESS", _mac(plan.mac))))
        for literal in (plan.address,) if plan.address else ():
            _address(rtnl, ifname, index, literal, persistent)
        rtnl.change(f"{ifname}: up", RTM_NEWLINK, _link(index, up=True))
        if plan.gateway:
            _packed(plan.gateway)
            route = rtmsg()
            route["family"] = socket.AF_INET
            route["table"], route["proto"] = RT_TABLE_MAIN, RTPROT_STATIC
            route["scope"], route["type"] = RT_SCOPE_UNIVERSE, RTN_UNICAST
            route["attrs"] = [("RTA_GATEWAY", plan.gateway), ("RTA_OIF", index)]
            what = f"{ifname}: default route via {plan.gateway}"
            rtnl.change(what, RTM_NEWROUTE, route, NLM_F_CREATE | NLM_F_REPLACE)
    finally:
        rtnl.close()


def _link(index: int, *attributes: tuple[str, Any], up: bool = False) -> Any:
    message = ifinfmsg()
    message["index"] = index
    if up:
        message["flags"] = message["change"] = IFF_UP
    message["attrs"] = list(attributes)
    return message


def _address(rtnl: Rtnetlink, ifname: str, index: int, literal: str, persistent: bool) -> None:
    address, _, length = literal.partition("/")
    packed = int.from_bytes(_packed(address), "big")
    if not (length.isascii() and length.isdigit() and int(length) <= 32):
        raise TapUnavailable(f"{literal!r} is not an IPv4 address with its prefix length")
    prefix = int(length)
    host_bits = (1 << (32 - prefix)) - 1

    def message(local: str, prefix: int) -> Any:
        message = ifaddrmsg()
        message["family"], message["prefixlen"], message["index"] = socket.AF_INET, prefix, index
        message["scope"] = RT_SCOPE_UNIVERSE
        message["attrs"] = [("IFA_LOCAL", local), ("IFA_ADDRESS", local)]
        return message

    if persistent:
        # An address of an earlier plan within our network would be preferred as source.
        for other, length_there in rtnl.addresses(index):
            inside = (int.from_bytes(_packed(other), "big") ^ packed) & ~host_bits == 0
            if inside and (other, length_there) != (address, prefix):
                rtnl.change(f"{ifname}: old address {other}", RTM_DELADDR, message(other, length_there))
    new = message(address, prefix)
    if prefix < 31:  # RFC 3021: a /31 has no broadcast address
        broadcast = socket.inet_ntop(socket.AF_INET, (packed | host_bits).to_bytes(4, "big"))
        new["attrs"].append(("IFA_BROADCAST", broadcast))
    rtnl.change(f"{ifname}: address {literal}", RTM_NEWADDR, new, NLM_F_CREATE | NLM_F_REPLACE)


def _packed(address: str) -> bytes:
    try:
        return socket.inet_pton(socket.AF_INET, address)
    except OSError as e:
        raise TapUnavailable(f"{address!r} is not an IPv4 address") from e


def _mac(text: str) -> str:
    octets = text.split(":")
    if len(octets) != 6 or any(len(octet) != 2 or set(octet) - set("0123456789abcdefABCDEF") for octet in octets):
        raise TapUnavailable(f"{text!r} is not a MAC address")
    return text.lower()


# --- the process -----------------------------------------------------------------------------------------------


def serve(netns_fd: int, plan: TapPlan) -> tuple[dict[str, Any], int]:
    """All of one request, in the child: (reply, TAP fd). Raises NamespaceUnavailable, TapUnavailable."""
    enter(netns_fd)
    fd, vnet_hdr, offload = open_tap(plan)
    try:
        name, persistent, mac = identity(fd)
        if plan.configure:
            configure(plan, name, persistent)
            _, _, mac = identity(fd)
    except BaseException:
        os.close(fd)  # so that the TAP is gone before the caller hears of it
        raise
    return {"mac": mac, "vnet_hdr": vnet_hdr, "offload": offload}, fd


def answer(channel: socket.socket, reply: dict[str, Any], fd: int = -1) -> None:
    send(channel, json.dumps(reply).encode(), fd)


def refuse(channel: socket.socket, request: int, e: NetdError) -> None:
    answer(channel, {"id": request, "error": e.code, "message": str(e), "hint": e.hint})


def child(channel: socket.socket, request: int, netns_fd: int, plan: TapPlan) -> NoReturn:
    """The forked child. Its status is 0 when it has answered."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, CHILD_SECONDS)
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # in there, root of the container could otherwise trace us
        try:
            reply, fd = serve(netns_fd, plan)
        except NetdError as e:
            refuse(channel, request, e)
        else:
            answer(channel, {"id": request, **reply}, fd)
        status = 0
    except (BrokenPipeError, ConnectionResetError):
        pass  # the daemon is gone; so is the TAP
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def run(channel: socket.socket) -> None:
    """Serves requests until the daemon closes its end."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    children: dict[int, tuple[int, int]] = {}  # pidfd -> pid, request
    answer(channel, {"agent": PROTOCOL})
    while True:
        for fd, _ in poll.poll():
            if fd in children:
                poll.unregister(fd)
                os.close(fd)
                pid, request = children.pop(fd)
                if len(children) == CHILDREN_MAX - 1:
                    poll.register(channel, select.POLLIN)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if code != 0:  # it has not answered, or died after it did: then nobody waits for this any more
                    why = f"took longer than {CHILD_SECONDS} s" if code == -signal.SIGALRM else f"died (status {code})"
                    refuse(channel, request, AgentUnavailable(f"the process in the namespace {why}"))
                continue
            data, fds = receive(channel)
            if not data:
                return
            try:
                accept(channel, data, fds, poll, children)
            finally:
                for received in fds:
                    os.close(received)


def accept(
    channel: socket.socket, data: bytes, fds: list[int], poll: select.poll, children: dict[int, tuple[int, int]]
) -> None:
    """Forks a child for one request, or answers it with an error."""
    message = json.loads(data)
    request = message["id"]
    if len(fds) != 1:
        return refuse(channel, request, AgentUnavailable(f"a request carries one namespace, not {len(fds)}"))
    try:
        plan = TapPlan(**message["plan"])
    except TypeError as e:  # the package was replaced under a running daemon
        return refuse(channel, request, AgentUnavailable(f"the agent is of another version: {e}", "restart netd"))
    try:
        pid = os.fork()
    except OSError as e:
        return refuse(channel, request, AgentUnavailable(f"no process for the namespace: {e.strerror}"))
    if pid == 0:
        child(channel, request, fds[0], plan)
    pidfd = os.pidfd_open(pid)
    children[pidfd] = pid, request
    poll.register(pidfd, select.POLLIN)
    if len(children) == CHILDREN_MAX:
        poll.unregister(channel)


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(ignored, signal.SIG_IGN)
    libc.prctl(PR_SET_NAME, b"netd-agent", 0, 0, 0)
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    gc.collect()
    gc.freeze()  # or a collection in a child would touch, and so copy, every page
    try:
        run(channel)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the daemon went away while it was answered


if __name__ == "__main__":
    main()
