"""The agent: a process of its own that enters namespaces, so that the daemon never has to.

``setns(2)`` into a user namespace needs a single-threaded process and cannot be undone. The daemon therefore keeps
this small process; for each request it forks, and the child

    asks the network namespace for its owning user namespace (ioctl_ns(2)), enters both,
    opens the TAP there, configures it over rtnetlink(7), sends its fd back, and is gone.

One SEQPACKET socket, made by the daemon and passed by number, carries one JSON object per message:

    agent -> daemon   {"agent": 1}                                       once, when it can serve
    daemon -> agent   {"id": 7, "plan": {...}} + the namespace's fd      plan: the fields of TapPlan
    agent -> daemon   {"id": 7, "mac": ..., "vnet_hdr": ..., "offload": ..., "uso": ..., "address6": ...,
                       "no_ipv6": "" or why there is no address6 although it was asked for} + the TAP's fd
                      {"id": 7, "error": CODE, "message": ..., "hint": ...}         code: of netd.errors

It ends when the socket closes. It ignores the terminal's signals; a child that crashes or hangs costs one request.

Sources: namespaces(7), user_namespaces(7), ioctl_ns(2), rtnetlink(7), Documentation/networking/ip-sysctl.rst.
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
import sys
import traceback
import types
from typing import Any, NoReturn

from netd.errors import AgentUnavailable, NamespaceUnavailable, NetdError, TapUnavailable
from netd.netns.channel import PROTOCOL, receive, send
from netd.netns.plan import TapPlan
from netd.netns.rtnetlink import (
    NLM_F_CREATE,
    NLM_F_REPLACE,
    RTM_DELADDR,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    Refused,
    Rtnetlink,
)
from netd.netns.tun import identity, offer_uso, open_tap

CHILDREN_MAX = 16  # requests at work at once; further ones wait in the socket
CHILD_SECONDS = 4.0  # a child's life, shorter than the daemon's patience

# linux/nsfs.h, in the encoding of asm-generic/ioctl.h (x86, arm, riscv, s390, loongarch).
NS_GET_USERNS, NS_GET_NSTYPE = 0xB701, 0xB703
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000

IFF_UP = 0x1  # linux/if.h
RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_UNIVERSE, RTN_UNICAST = 254, 4, 0, 1  # linux/rtnetlink.h
IFA_F_NODAD = 0x02  # linux/if_addr.h
IPV6_MIN_MTU = 1280  # RFC 8200 §5; on a device with less the kernel has no IPv6
# What the kernel says to an IPv6 address where IPv6 is disabled, and where there is none.
NO_IPV6 = {
    errno.EACCES: "is disabled",
    errno.EOPNOTSUPP: "is not in the kernel",
    errno.EAFNOSUPPORT: "is not in the kernel",
}

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


# --- configuration -------------------------------------------------------------------------------------------------


def configure(plan: TapPlan, ifname: str, persistent: bool, mac: str) -> tuple[str, str]:
    """lo and the TAP up, with the plan's MTU, MAC, queue, addresses and default routes. Raises TapUnavailable.

    Every step replaces what is there, so a second run, on a namespace that has all this and interfaces of others,
    ends in the same state. ``mac`` is the device's now. The answer is (the IPv6 address it has, "" or why it has none
    although the plan has one).
    """
    index = socket.if_nametoindex(ifname)
    rtnl = Rtnetlink()
    address6 = no_ipv6 = ""
    try:
        rtnl.change("lo", RTM_NEWLINK, _link(socket.if_nametoindex("lo"), up=True))
        rtnl.change(f"{ifname}: MTU {plan.mtu}", RTM_NEWLINK, _link(index, ("IFLA_MTU", plan.mtu)))
        queue = ("IFLA_TXQLEN", plan.txqueuelen)
        rtnl.change(f"{ifname}: txqueuelen {plan.txqueuelen}", RTM_NEWLINK, _link(index, queue))
        if plan.mac:
            mac = _mac(plan.mac)
            rtnl.change(f"{ifname}: MAC {plan.mac}", RTM_NEWLINK, _link(index, ("IFLA_ADDRESS", mac)))
        if plan.address:
            packed, prefix = _address(socket.AF_INET, plan.address)
            _assign(rtnl, ifname, index, packed, prefix, persistent)
        if plan.address6:
            address6, no_ipv6 = _assign6(plan, rtnl, ifname, index, mac, persistent)
        rtnl.change(f"{ifname}: up", RTM_NEWLINK, _link(index, up=True))
        if plan.gateway:
            _default_route(rtnl, ifname, index, socket.AF_INET, plan.gateway)
        if plan.gateway6 and address6:
            _default_route(rtnl, ifname, index, socket.AF_INET6, plan.gateway6)
    finally:
        rtnl.close()
    return address6, no_ipv6


def _link(index: int, *attributes: tuple[str, Any], up: bool = False) -> Any:
    message = ifinfmsg()
    message["index"] = index
    if up:
        message["flags"] = message["change"] = IFF_UP
    message["attrs"] = list(attributes)
    return message


def _default_route(rtnl: Rtnetlink, ifname: str, index: int, family: int, gateway: str) -> None:
    _packed(family, gateway)
    route = rtmsg()
    route["family"] = family
    route["table"], route["proto"] = RT_TABLE_MAIN, RTPROT_STATIC
    route["scope"], route["type"] = RT_SCOPE_UNIVERSE, RTN_UNICAST
    route["attrs"] = [("RTA_GATEWAY", gateway), ("RTA_OIF", index)]
    rtnl.change(f"{ifname}: default route via {gateway}", RTM_NEWROUTE, route, NLM_F_CREATE | NLM_F_REPLACE)


def _assign6(plan: TapPlan, rtnl: Rtnetlink, ifname: str, index: int, mac: str, persistent: bool) -> tuple[str, str]:
    """The plan's IPv6 address and the link-local one, usable as soon as the device is up: (the address, why none).

    Called before the device comes up: it then finds its link-local address there and makes none that would have to
    pass duplicate address detection first (addrconf_add_linklocal() in net/ipv6/addrconf.c). No sysctl is needed for
    that; /proc/sys may be read-only.
    """
    packed, prefix = _address(socket.AF_INET6, plan.address6)
    if prefix < 128 and int.from_bytes(packed, "big") & ((1 << (128 - prefix)) - 1) == 0:  # a network
        if prefix != 64:  # RFC 4291 §2.5.1
            raise TapUnavailable(f"{plan.address6!r} is a network whose prefix length is not 64")
        packed = packed[:8] + eui64(mac)
    if plan.mtu < IPV6_MIN_MTU:
        return "", f"MTU {plan.mtu} is less than IPv6's minimum of {IPV6_MIN_MTU}"
    for name in ("lo", ifname):  # without lo nothing in there can talk to the TAP's own address
        if _sysctl(name, "disable_ipv6") == "1":
            _sysctl(name, "disable_ipv6", "0")
    # What the router advertises is what the plan says: SLAAC could add no more than a second, unplanned address.
    _sysctl(ifname, "autoconf", "0")
    try:
        _assign(rtnl, ifname, index, b"\xfe\x80" + bytes(6) + eui64(mac), 64, persistent)
        _assign(rtnl, ifname, index, packed, prefix, persistent)
    except Refused as e:
        if e.number not in NO_IPV6:
            raise
        return "", f"IPv6 {NO_IPV6[e.number]}"
    return f"{socket.inet_ntop(socket.AF_INET6, packed)}/{prefix}", ""


def _sysctl(ifname: str, key: str, value: str = "") -> str:
    """net.ipv6.conf.IFNAME.KEY of this namespace, set to ``value`` before unless that is ""; "" if it cannot be."""
    path = f"/proc/sys/net/ipv6/conf/{ifname}/{key}"
    try:
        if value:
            with open(path, "w") as file:
                file.write(value)
        with open(path) as file:
            return file.read().strip()
    except OSError:  # no IPv6 in this kernel, a read-only /proc/sys, none
        return ""


def _assign(rtnl: Rtnetlink, ifname: str, index: int, packed: bytes, prefix: int, persistent: bool) -> None:
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    number = int.from_bytes(packed, "big")
    host_bits = (1 << (8 * len(packed) - prefix)) - 1

    def message(address: bytes, prefix: int) -> Any:
        literal = socket.inet_ntop(family, address)
        message = ifaddrmsg()
        message["family"], message["prefixlen"], message["index"] = family, prefix, index
        message["scope"] = RT_SCOPE_UNIVERSE
        message["attrs"] = [("IFA_LOCAL", literal), ("IFA_ADDRESS", literal)]
        return message

    if persistent:
        # An address of an earlier plan within our network would be preferred as source; one that is still, or will
        # never be done with, duplicate address detection is not to be had by replacing it.
        for there in rtnl.addresses(family, index):
            inside = (int.from_bytes(there.packed, "big") ^ number) & ~host_bits == 0
            if inside and ((there.packed, there.prefix) != (packed, prefix) or not there.usable):
                literal = socket.inet_ntop(family, there.packed)
                rtnl.change(f"{ifname}: old address {literal}", RTM_DELADDR, message(there.packed, there.prefix))
    new = message(packed, prefix)
    if family == socket.AF_INET6:
        new["flags"] = IFA_F_NODAD
    elif prefix < 31:  # RFC 3021: a /31 has no broadcast address
        broadcast = socket.inet_ntop(socket.AF_INET, (number | host_bits).to_bytes(4, "big"))
        new["attrs"].append(("IFA_BROADCAST", broadcast))
    what = f"{ifname}: address {socket.inet_ntop(family, packed)}/{prefix}"
    rtnl.change(what, RTM_NEWADDR, new, NLM_F_CREATE | NLM_F_REPLACE)


def _address(family: int, literal: str) -> tuple[bytes, int]:
    """``10.0.2.100/24`` or ``fd00::5/64`` in bytes. Raises TapUnavailable."""
    address, _, length = literal.partition("/")
    packed = _packed(family, address)
    if not (length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= 8 * len(packed)):
        raise TapUnavailable(f"{literal!r} is not an {_VERSIONS[family]} address with its prefix length")
    return packed, int(length)


_VERSIONS: dict[int, str] = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}


def _packed(family: int, address: str) -> bytes:
    try:
        return socket.inet_pton(family, address)
    except (OSError, ValueError) as e:
        raise TapUnavailable(f"{address!r} is not an {_VERSIONS[family]} address") from e


def eui64(mac: str) -> bytes:
    """The interface identifier that SLAAC makes of a MAC: ff:fe in its middle, the u bit turned (RFC 4291, app. A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    return bytes((octets[0] ^ 0x02, *octets[1:3], 0xFF, 0xFE, *octets[3:]))


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
    address6 = no_ipv6 = ""
    try:
        uso = plan.uso and offload and offer_uso(fd)
        name, persistent, mac = identity(fd)
        if plan.configure:
            address6, no_ipv6 = configure(plan, name, persistent, mac)
            _, _, mac = identity(fd)
    except BaseException:
        os.close(fd)  # so that the TAP is gone before the caller hears of it
        raise
    features = {"vnet_hdr": vnet_hdr, "offload": offload, "uso": uso}
    return {"mac": mac, **features, "address6": address6, "no_ipv6": no_ipv6}, fd


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
