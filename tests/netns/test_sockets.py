"""Sockets made in a namespace and used from outside of it."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from netd.errors import AgentUnavailable, LimitReached, NamespaceUnavailable
from netd.netns import spawn
from netd.netns.channel import FDS_MAX
from netd.netns.plan import SocketPlan, TapPlan
from netd.netns.spawn import Agent

from .conftest import Namespace, Run, open_fds
from .test_agent import children_of, until
from .test_ipv6 import disable

LISTEN = SocketPlan("listen", ip="127.0.0.1", port=5000)
DIAG = SocketPlan("diag")
CONNECT = SocketPlan("connect")
ALL = [DIAG, CONNECT, LISTEN]


def once(run: Run, namespace: Namespace, *plans: SocketPlan) -> list[int | str]:
    async def ask() -> list[int | str]:
        agent = Agent()
        await agent.start()
        try:
            return await agent.open_sockets(namespace.fd, plans)
        finally:
            await agent.stop()

    found: list[int | str] = run(ask())
    return found


def sockets(run: Run, namespace: Namespace, *plans: SocketPlan) -> list[socket.socket]:
    """All of them, blocking for two seconds."""
    found = once(run, namespace, *plans)
    assert all(isinstance(fd, int) for fd in found), found
    made = [socket.socket(fileno=int(fd)) for fd in found]
    for sock in made:
        assert not os.get_inheritable(sock.fileno()) and not os.get_blocking(sock.fileno())
        sock.settimeout(2)
    return made


def close(*made: socket.socket) -> None:
    for sock in made:
        sock.close()


@pytest.fixture
def up(namespace: Namespace) -> Namespace:
    """With lo, and a network of its own on a bridge."""
    namespace.run("sh", "-c", "cd /proc/sys/net/ipv6/conf && for d in *; do echo 0 > $d/accept_dad; done")
    for line in (
        "link set lo up",
        "link add eth0 type veth peer name peer0",
        "link set peer0 up",
        "link set eth0 up",
        "address add 192.0.2.2/24 dev eth0",
        "address add 2001:db8::2/64 dev eth0",
    ):
        namespace.run("ip", *line.split())
    return namespace


def inside(namespace: Namespace, script: str, *words: str) -> str:
    lines = "import socket, sys\nsocket.setdefaulttimeout(2)\n" + script
    return namespace.run(sys.executable, "-c", lines, *words)


TALK = "s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); print(s.recv(99).decode(), end='')"


@pytest.mark.parametrize("ip", ["127.0.0.1", "192.0.2.2", "", "::1", "2001:db8::2", "::"])
def test_listener_that_the_daemon_accepts_from(run: Run, up: Namespace, ip: str) -> None:
    family = 6 if ":" in ip else 4
    [listener] = sockets(run, up, replace(LISTEN, family=family, ip=ip, port=80))  # a privileged port
    listening = socket.AF_INET6 if family == 6 else socket.AF_INET
    assert (listener.family, listener.type) == (listening, socket.SOCK_STREAM)
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    to = {"": "192.0.2.2", "::": "2001:db8::2"}.get(ip, ip)

    async def accept() -> None:
        loop = asyncio.get_running_loop()
        talking = loop.run_in_executor(None, inside, up, TALK, to, "80")
        connection, peer = await loop.run_in_executor(None, listener.accept)
        assert peer[0] == to
        connection.sendall(b"from outside")
        connection.close()
        assert await talking == "from outside"

    run(accept())
    with pytest.raises(OSError):  # it is of another network than ours
        socket.create_connection((to, 80), 0.2)
    close(listener)


def test_ipv4_and_ipv6_on_one_port(run: Run, up: Namespace) -> None:
    plans = [replace(LISTEN, family=family, protocol=protocol, ip="") for family in (4, 6) for protocol in ("tcp", "udp")]  # fmt: skip
    made = sockets(run, up, *plans)
    assert [s.getsockname()[1] for s in made] == [5000] * 4
    close(*made)


def test_udp(run: Run, up: Namespace) -> None:
    """Without SO_REUSEADDR, which would let another take the datagrams."""
    for ip, family in (("127.0.0.1", 4), ("2001:db8::2", 6)):
        [bound] = sockets(run, up, replace(LISTEN, protocol="udp", family=family, ip=ip))
        kind = "socket.AF_INET6" if family == 6 else "socket.AF_INET"
        script = f"s = socket.socket({kind}, socket.SOCK_DGRAM); s.sendto(b'hello', (sys.argv[1], 5000))"
        inside(up, script, ip)
        data, peer = bound.recvfrom(99)
        assert (data, peer[0]) == (b"hello", ip)
        assert once(run, up, replace(LISTEN, protocol="udp", family=family, ip=ip)) == ["Address already in use"]
        close(bound)


def test_bound_to_an_interface(run: Run, up: Namespace) -> None:
    """What listens on every address, but of lo alone, is not reached from the network."""
    made = sockets(run, up, *(replace(LISTEN, family=f, ip="", interface="lo") for f in (4, 6)))
    for listener in made:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
    for ip in ("127.0.0.1", "::1"):
        inside(up, "socket.create_connection((sys.argv[1], 5000))", ip)
    up.run("ip", "link", "add", "cut", "type", "bridge")
    refused = (
        "s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'eth0')\n"
        "print(s.connect_ex(('192.0.2.2', 5000)))"
    )
    assert int(inside(up, refused)) != 0
    both = once(run, up, replace(LISTEN, interface="nosuch0"), replace(LISTEN, ip="", interface="eth0"))
    assert both[0] == "No such device"
    assert isinstance(both[1], int)  # the same port, of another interface
    os.close(both[1])
    close(*made)


def test_a_link_local_address_and_its_zone(run: Run, up: Namespace) -> None:
    [mine] = [a for i in up.ip("-6", "address", "show", "dev", "eth0") for a in i["addr_info"] if a["scope"] == "link"]
    plan = replace(LISTEN, family=6, ip=mine["local"])
    assert once(run, up, plan) == ["Invalid argument"]
    [listener] = sockets(run, up, replace(plan, interface="eth0"))
    assert listener.getsockname()[0].split("%")[0] == mine["local"]
    close(listener)


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_connect_to_a_server_inside(run: Run, up: Namespace, ip: str) -> None:
    plans = [replace(CONNECT, family=6 if ":" in ip else 4, protocol=protocol) for protocol in ("tcp", "udp")]
    stream, datagram = sockets(run, up, *plans)
    [listener] = sockets(run, up, replace(LISTEN, family=plans[0].family, ip=ip, port=0))
    to = listener.getsockname()[:2]
    stream.setblocking(False)

    async def connect() -> None:
        await asyncio.get_running_loop().sock_connect(stream, to)

    run(connect())
    served, _ = listener.accept()
    served.sendall(b"from inside")
    stream.settimeout(2)
    assert stream.recv(99) == b"from inside"
    datagram.connect(to)
    datagram.send(b"x")
    with pytest.raises(ConnectionRefusedError):  # the answer of the namespace's kernel
        datagram.recv(9)
    close(stream, datagram, listener, served)


def listening_ports(diag: socket.socket, family: int, protocol: int, states: int) -> set[int]:
    """sock_diag(7): a dump of struct inet_diag_msg."""
    request = struct.pack("=BBBxI48s", family, protocol, 0, states, bytes(48))  # struct inet_diag_req_v2
    diag.send(struct.pack("=IHHII", 16 + len(request), 20, 0x301, 1, 0) + request)
    found = set()
    while True:
        data = diag.recv(65536)
        offset = 0
        while offset < len(data):
            length, kind = struct.unpack_from("=IH", data, offset)
            if kind == 3:  # NLMSG_DONE
                return found
            assert kind == 20, struct.unpack_from("=i", data, offset + 16)
            found.add(struct.unpack_from("!H", data, offset + 16 + 4)[0])
            offset += (length + 3) & ~3


def test_diag_sees_what_listens_inside(run: Run, up: Namespace) -> None:
    plans = [replace(LISTEN, port=port, family=f, ip="") for port, f in ((22, 4), (8080, 4), (8080, 6))]
    diag, *made = sockets(run, up, DIAG, *plans, replace(LISTEN, protocol="udp", port=53))
    listen, unconnected = 1 << 10, 1 << 7  # TCP_LISTEN, TCP_CLOSE
    assert listening_ports(diag, socket.AF_INET, socket.IPPROTO_TCP, listen) == {22, 8080}
    assert listening_ports(diag, socket.AF_INET6, socket.IPPROTO_TCP, listen) == {8080}
    assert listening_ports(diag, socket.AF_INET, socket.IPPROTO_UDP, unconnected) == {53}
    close(made[0])  # the agent's child may have a copy until it has exited
    run(until(lambda: listening_ports(diag, socket.AF_INET, socket.IPPROTO_TCP, listen) == {8080}))
    close(diag, *made[1:])


def test_each_has_its_own_reason(run: Run, up: Namespace) -> None:
    inside(up, "s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname())")
    plans = {
        LISTEN: 0,
        replace(LISTEN, port=5001): 0,
        replace(LISTEN, ip="0.0.0.0"): "Address already in use",
        replace(LISTEN, ip="203.0.113.1"): "Cannot assign requested address",
        replace(LISTEN, ip="localhost"): "'localhost' is not an IPv4 address",
        replace(LISTEN, family=6): "'127.0.0.1' is not an IPv6 address",
        replace(LISTEN, ip="::1%lo", family=6): "'::1%lo' is not an IPv6 address",
        replace(LISTEN, ip="127.0.0.1\0"): "'127.0.0.1\\x00' is not an IPv4 address",
        replace(LISTEN, port=65536): "no port 65536",
        replace(LISTEN, port=-1): "no port -1",
        replace(LISTEN, interface="a-name-too-long0"): "'a-name-too-long0' is not an interface name",
        replace(LISTEN, interface="l\0o"): "'l\\x00o' is not an interface name",
        replace(LISTEN, protocol="sctp"): "no sockets of 'sctp' over IP version 4",
        replace(CONNECT, family=5): "no sockets of 'tcp' over IP version 5",
        replace(CONNECT, kind="raw"): "no sockets of kind 'raw'",
        replace(LISTEN, ip="", port=0): 0,
    }
    found = once(run, up, *plans)
    for plan, (fd, wanted) in zip(plans, zip(found, plans.values(), strict=True), strict=True):
        if wanted == 0:
            assert isinstance(fd, int), (plan, fd)
            os.close(fd)
        else:
            assert fd == wanted


def test_a_port_is_free_again_at_once(run: Run, up: Namespace) -> None:
    """Also with a connection in TIME-WAIT (SO_REUSEADDR)."""
    for _ in range(2):
        [listener] = sockets(run, up, LISTEN)
        inside(up, "global s; s = socket.create_connection(('127.0.0.1', 5000))")
        served, _ = listener.accept()
        close(served, listener)


def test_without_ipv6(run: Run, up: Namespace) -> None:
    disable(up)
    [reason] = once(run, up, replace(LISTEN, family=6, ip="::1"))
    assert reason == "Cannot assign requested address"


def test_no_namespace(run: Run, up: Namespace) -> None:
    async def main() -> None:
        agent = Agent()
        await agent.start()
        with tempfile.TemporaryFile() as wrong, pytest.raises(NamespaceUnavailable, match="not a network namespace"):
            await agent.open_sockets(wrong.fileno(), ALL)
        with pytest.raises(NamespaceUnavailable):
            await agent.open_sockets(-1, ALL)
        assert await agent.open_sockets(up.fd, []) == []
        await agent.stop()
        with pytest.raises(AgentUnavailable, match="stopped"):
            await agent.open_sockets(up.fd, ALL)

    run(main())


# --- how many --------------------------------------------------------------------------------------------------


def test_as_many_as_a_message_carries(run: Run, up: Namespace) -> None:
    plans = [replace(LISTEN, port=6000 + n, interface="lo") for n in range(FDS_MAX)]
    made = sockets(run, up, *plans)
    assert [s.getsockname()[1] for s in made] == [plan.port for plan in plans]
    assert once(run, up, *plans) == ["Address already in use"] * FDS_MAX
    close(*made)
    with pytest.raises(LimitReached, match=f"at most {FDS_MAX} sockets are opened at once, not {FDS_MAX + 1}"):
        once(run, up, *plans, LISTEN)
    with pytest.raises(ValueError, match="less than one"):  # and not the end of the agent
        once(run, up, replace(LISTEN, count=-1))


def test_no_room_for_some(run: Run, up: Namespace) -> None:
    """At the limit of open files the kernel drops the last ones: they are told, and the others are good."""
    import resource

    async def main() -> list[int | str]:
        agent = Agent()
        await agent.start()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        os.kill(agent.pid, signal.SIGSTOP)
        asking = asyncio.create_task(agent.open_sockets(up.fd, [replace(LISTEN, port=7000 + n) for n in range(50)]))
        await asyncio.sleep(0.05)
        try:
            used = {int(fd) for fd in os.listdir("/proc/self/fd")}
            limit = sorted(set(range(100)) - used)[20]
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            os.kill(agent.pid, signal.SIGCONT)
            return await asking
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await agent.stop()

    found = run(main())
    good = [fd for fd in found if isinstance(fd, int)]
    assert 20 <= len(good) <= 21 and found == [*good, *["Too many open files"] * (50 - len(good))]
    made = [socket.socket(fileno=fd) for fd in good]
    assert [s.getsockname()[1] for s in made] == [7000 + n for n in range(len(good))]
    close(*made)


# --- and none is lost ------------------------------------------------------------------------------------------


def test_caller_cancelled(run: Run, up: Namespace) -> None:
    """The answer that nobody waits for any more is closed: its port is free."""

    async def main() -> None:
        agent = Agent()
        await agent.start()
        before = open_fds()
        os.kill(agent.pid, signal.SIGSTOP)
        asking = asyncio.create_task(agent.open_sockets(up.fd, ALL))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        os.kill(agent.pid, signal.SIGCONT)
        await until(lambda: not children_of(agent.pid))
        await agent.host_view()  # what came before its answer has been seen
        assert open_fds() == before
        await free(agent, up)
        await agent.stop()

    run(main())


async def free(agent: Agent, namespace: Namespace) -> None:
    """The port can be had, once nobody holds a copy."""
    async with asyncio.timeout(5):
        while isinstance(fd := (await agent.open_sockets(namespace.fd, [LISTEN]))[0], str):
            assert fd == os.strerror(errno.EADDRINUSE)
            await asyncio.sleep(0.005)
    os.close(fd)


def test_caller_cancelled_in_the_turn_of_the_answer(run: Run, up: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        agent = Agent()
        await agent.start()
        before = open_fds()
        settle = spawn._Life._settle

        def settle_and_cancel(self: Any, answer: Any) -> bool:
            taken = settle(self, answer)
            assert len(answer.fds) == 3
            asking.cancel()
            return taken

        monkeypatch.setattr(spawn._Life, "_settle", settle_and_cancel)
        asking = asyncio.create_task(agent.open_sockets(up.fd, ALL))
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert open_fds() == before
        monkeypatch.undo()
        await free(agent, up)
        await agent.stop()

    run(main())


def test_unanswered_then_well_again(run: Run, up: Namespace) -> None:
    async def main() -> None:
        agent = Agent(deadline=1.5)
        await agent.start()
        os.kill(agent.pid, signal.SIGSTOP)
        for asking in (agent.open_sockets(up.fd, ALL), agent.host_view()):
            with pytest.raises(AgentUnavailable, match=r"within 1\.5 s"):
                await asking
            await agent.start()
            hung = agent.pid
            os.kill(hung, signal.SIGSTOP)
        os.kill(hung, signal.SIGCONT)
        await free(agent, up)
        await agent.stop()

    run(main())


def test_killed_with_requests_under_way(run: Run, up: Namespace) -> None:
    async def main() -> None:
        agent = Agent()
        await agent.start()
        before = open_fds()
        os.kill(agent.pid, signal.SIGSTOP)
        asking = asyncio.create_task(agent.open_sockets(up.fd, ALL))
        looking = asyncio.create_task(agent.host_view())
        await asyncio.sleep(0.05)
        os.kill(agent.pid, signal.SIGKILL)
        made = await asking
        assert all(isinstance(fd, int) for fd in made)
        assert [i.name for i in (await looking).interfaces] == [name for _, name in socket.if_nameindex()]
        for fd in made:
            os.close(int(fd))
        assert open_fds() == before
        await agent.stop()

    run(main())


def test_killed_after_it_answered(run: Run, up: Namespace) -> None:
    """The answer lies in the socket of a dead agent; whether it is still read or asked anew, nothing is lost."""

    async def main() -> None:
        agent = Agent()
        await agent.start()
        before = open_fds()
        for _ in range(5):
            asking = asyncio.create_task(agent.open_sockets(up.fd, [DIAG, CONNECT]))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            pid = agent.pid
            time.sleep(0.05)  # this loop stands still meanwhile, and the answer comes
            os.kill(pid, signal.SIGKILL)
            for fd in await asking:
                os.close(int(fd))
            await until(lambda pid=pid: agent.pid != pid)
            await agent.start()
            assert open_fds() == before
        await agent.stop()

    run(main())


@pytest.mark.parametrize(
    "reply",
    [
        {"sockets": [None]},
        {"sockets": [None, None, None, None]},
        {"sockets": None},
        {"sockets": [1, 2, 3]},
        {"tap": {}},
        {},
    ],
)
def test_an_answer_that_is_none(
    run: Run, up: Namespace, monkeypatch: pytest.MonkeyPatch, reply: dict[str, Any]
) -> None:
    """An agent of another version: it is ended, the request asked once more, and nothing is lost."""

    async def main() -> None:
        agent = Agent()
        await agent.start()
        before = open_fds()
        settle = spawn._Life._settle

        def spoil(self: Any, answer: Any) -> bool:
            if "id" in answer.reply:
                answer.reply = {"id": answer.reply["id"], **reply}
            return settle(self, answer)

        monkeypatch.setattr(spawn._Life, "_settle", spoil)
        with pytest.raises(AgentUnavailable, match="ended twice: speaks another language"):
            await agent.open_sockets(up.fd, ALL)
        monkeypatch.undo()
        await agent.start()
        assert open_fds() == before
        await free(agent, up)
        await agent.stop()

    run(main())


def test_no_room_for_the_answer_itself(run: Run, up: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        agent = Agent()
        await agent.start()
        before = open_fds()
        settle = spawn._Life._settle

        def spoil(self: Any, answer: Any) -> bool:
            answer.reply = {"id": answer.reply["id"], "spilled": True}
            return settle(self, answer)

        monkeypatch.setattr(spawn._Life, "_settle", spoil)
        for asking in (agent.open_sockets(up.fd, ALL), agent.host_view()):
            with pytest.raises(AgentUnavailable, match="no free file descriptor for the agent's answer"):
                await asking
        assert open_fds() == before
        await agent.stop()

    run(main())


@pytest.mark.usefixtures("tun")
def test_all_operations_at_once(run: Run, up: Namespace, make_namespace: Callable[..., Namespace]) -> None:
    other = make_namespace()

    async def main() -> None:
        agent = Agent()
        await agent.start()
        before = open_fds()
        plans = [TapPlan(f"tap{n}", 1500, configure=False) for n in range(20)]
        taps = asyncio.gather(*(agent.open_tap(other.fd, plan) for plan in plans))
        views = asyncio.gather(*(agent.host_view() for _ in range(20)))
        listeners = [replace(LISTEN, port=8000 + n) for n in range(20)]
        opened = asyncio.gather(*(agent.open_sockets(up.fd, [plan, DIAG]) for plan in listeners))
        assert len({view.interfaces for view in await views}) == 1
        for tap in await taps:
            os.close(tap.fd)
        for made, plan in zip(await opened, listeners, strict=True):
            with socket.socket(fileno=int(made[0])) as listener:
                assert listener.getsockname() == ("127.0.0.1", plan.port)
            os.close(int(made[1]))
        assert open_fds() == before
        await agent.stop()

    run(main())
