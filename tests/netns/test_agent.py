"""The agent as a process: its life, its death, its bounds; and that nothing is lost on the way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from netd.errors import AgentUnavailable, NamespaceUnavailable
from netd.netns import spawn
from netd.netns.plan import OpenTap, SocketPlan, TapPlan
from netd.netns.spawn import Agent

from .conftest import Namespace, Run, open_fds

PLAN = TapPlan("tap0", 1500, address="10.0.2.100/24", gateway="10.0.2.2")

needs_tap = pytest.mark.usefixtures("tun")


def children_of(pid: int) -> list[int]:
    """Those at work."""
    return [child for child, name in _children(pid) if name != "netd-ready\n"]


def ready_of(pid: int) -> list[int]:
    """The one that stands ready, if it does."""
    return [child for child, name in _children(pid) if name == "netd-ready\n"]


def _children(pid: int) -> list[tuple[int, str]]:
    found = []
    for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            found.append((int(word), Path(f"/proc/{word}/comm").read_text()))
    return found


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def cpu_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def pss(pid: int) -> int:
    """Proportional set size in kB."""
    words = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    return int(words[words.index("Pss:") + 1])


def test_starts_and_stops(run: Run) -> None:
    async def main() -> None:
        agent = Agent()
        assert agent.pid == 0
        await agent.stop()  # before it ran: nothing to do
        await agent.start()
        await agent.start()
        pid = agent.pid
        assert os.getsid(pid) == pid
        await agent.stop()
        await agent.stop()
        assert agent.pid == 0 and gone(pid)
        fd = os.open("/proc/self/ns/net", os.O_RDONLY)
        with pytest.raises(AgentUnavailable, match="stopped"):
            await agent.open_tap(fd, PLAN)
        os.close(fd)

    run(main())


def test_what_it_inherits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/of-the-daemon")
    monkeypatch.setenv("LISTEN_FDS", "2")

    async def main() -> None:
        agent = Agent()
        leaky = os.open("/", os.O_RDONLY)
        os.set_inheritable(leaky, True)
        await agent.start()
        os.close(leaky)
        proc = Path(f"/proc/{agent.pid}")
        names = {entry.split(b"=")[0] for entry in (proc / "environ").read_bytes().split(b"\0")}
        assert not names & {b"NOTIFY_SOCKET", b"LISTEN_FDS"}
        assert os.readlink(proc / "cwd") == "/"
        assert (proc / "comm").read_text() == "netd-agent\n"
        await until(lambda: ready_of(agent.pid))
        fds = {fd.name: os.readlink(fd) for fd in (proc / "fd").iterdir()}
        assert fds.pop("0") == fds.pop("1") == "/dev/null"
        assert fds.pop("2") == os.readlink("/proc/self/fd/2")
        pidfd, channel, requests = sorted(fds.values())
        assert channel.startswith("socket:") and requests.startswith("socket:") and pidfd == "anon_inode:[pidfd]"
        assert len(list((proc / "task").iterdir())) == 1  # or setns(CLONE_NEWUSER) is refused
        await agent.stop()

    run(main())


def test_is_small(run: Run) -> None:
    """About 14 MB with the child that stands ready; all of pyroute2 would be 33."""

    async def main() -> int:
        agent = Agent()
        await agent.start()
        await until(lambda: ready_of(agent.pid))
        await asyncio.sleep(0.1)  # its rehearsal
        size = pss(agent.pid) + pss(*ready_of(agent.pid))
        await agent.stop()
        return size

    assert run(main()) < 20_000


def test_a_child_stands_ready_and_is_the_one_that_works(run: Run, namespace: Namespace) -> None:
    async def main() -> None:
        agent = Agent()
        await agent.start()
        for _ in range(2):
            await until(lambda: ready_of(agent.pid))
            [ready] = ready_of(agent.pid)
            sockets = await agent.open_sockets(namespace.fd, [SocketPlan("diag")] * 3)
            assert ready_of(agent.pid) == []
            await until(lambda ready=ready: gone(ready))
            for fd in sockets:
                assert isinstance(fd, int)
                os.close(fd)
        await agent.stop()

    run(main())


def test_one_that_stands_ready_no_more_costs_nothing(run: Run, namespace: Namespace) -> None:
    async def main() -> None:
        agent = Agent()
        await agent.start()
        await until(lambda: ready_of(agent.pid))
        before = cpu_seconds(agent.pid)
        os.kill(*ready_of(agent.pid), signal.SIGKILL)
        await asyncio.sleep(0.5)
        assert ready_of(agent.pid) == [] and cpu_seconds(agent.pid) - before < 0.2, "no other is made again and again"
        pid = agent.pid
        for _ in range(3):
            for fd in await agent.open_sockets(namespace.fd, [SocketPlan("diag")]):
                assert isinstance(fd, int)
                os.close(fd)
        await until(lambda: ready_of(pid))
        assert agent.pid == pid
        await agent.stop()

    run(main())


@pytest.mark.parametrize("by", [signal.SIGKILL, None])
def test_the_one_that_stands_ready_ends_with_the_agent(run: Run, by: signal.Signals | None) -> None:
    async def main() -> None:
        agent = Agent()
        await agent.start()
        await until(lambda: ready_of(agent.pid))
        [ready] = ready_of(agent.pid)
        if by is None:
            await agent.stop()
        else:
            os.kill(agent.pid, by)
        await until(lambda: gone(ready))
        await agent.stop()

    run(main())


def test_ignores_the_terminal(run: Run) -> None:
    async def main() -> None:
        agent = Agent()
        await agent.start()
        pid = agent.pid
        for ignored in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP):
            os.kill(pid, ignored)
        with tempfile.TemporaryFile() as wrong, pytest.raises(NamespaceUnavailable):
            await agent.open_tap(wrong.fileno(), PLAN)
        assert agent.pid == pid
        await agent.stop()

    run(main())


@needs_tap
def test_killed_in_between(run: Run, namespace: Namespace) -> None:
    async def main() -> None:
        agent = Agent()
        await agent.start()
        for _ in range(2):
            before = agent.pid
            os.kill(before, signal.SIGKILL)
            tap = await agent.open_tap(namespace.fd, PLAN)  # perhaps before anybody has seen it dead
            os.close(tap.fd)
            assert agent.pid not in (0, before)
            await until(lambda pid=before: gone(pid))
        os.kill(agent.pid, signal.SIGKILL)
        await until(lambda: agent.pid == 0)
        tap = await agent.open_tap(namespace.fd, PLAN)  # after it was seen
        os.close(tap.fd)
        await agent.stop()

    run(main())


@needs_tap
def test_killed_with_a_request_under_way(run: Run, namespace: Namespace) -> None:
    async def main() -> None:
        agent = Agent()
        await agent.start()
        os.kill(agent.pid, signal.SIGSTOP)
        asking = asyncio.create_task(agent.open_tap(namespace.fd, PLAN))
        await asyncio.sleep(0.05)
        os.kill(agent.pid, signal.SIGKILL)
        tap = await asking
        assert namespace.names() == {"lo", "tap0"}
        os.close(tap.fd)
        await agent.stop()

    run(main())


@needs_tap
def test_unanswered_then_well_again(run: Run, namespace: Namespace) -> None:
    async def main() -> None:
        agent = Agent(deadline=0.4)
        await agent.start()
        hung = agent.pid
        os.kill(hung, signal.SIGSTOP)
        with pytest.raises(AgentUnavailable, match=r"within 0\.4 s"):
            await agent.open_tap(namespace.fd, PLAN)
        await until(lambda: gone(hung))
        tap = await agent.open_tap(namespace.fd, PLAN)
        os.close(tap.fd)
        await agent.stop()

    run(main())


@needs_tap
def test_caller_cancelled(run: Run, namespace: Namespace) -> None:
    """The answer that nobody waits for any more is closed: its TAP goes, and the name is free."""

    async def main() -> None:
        agent = Agent()
        await agent.start()
        before = open_fds()
        os.kill(agent.pid, signal.SIGSTOP)
        asking = asyncio.create_task(agent.open_tap(namespace.fd, PLAN))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        os.kill(agent.pid, signal.SIGCONT)
        tap = await agent.open_tap(namespace.fd, PLAN)
        assert namespace.names() == {"lo", "tap0"}
        os.close(tap.fd)
        await until(lambda: not children_of(agent.pid) and namespace.names() == {"lo"})  # it may have come second
        assert open_fds() == before
        await agent.stop()

    run(main())


@needs_tap
def test_caller_cancelled_in_the_turn_of_the_answer(
    run: Run, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        agent = Agent()
        await agent.start()
        before = open_fds()
        settle = spawn._Life._settle
        arrived = []

        def settle_and_cancel(self: Any, answer: Any) -> bool:
            taken = settle(self, answer)
            arrived.append(answer.reply)
            asking.cancel()
            return taken

        monkeypatch.setattr(spawn._Life, "_settle", settle_and_cancel)
        asking = asyncio.create_task(agent.open_tap(namespace.fd, PLAN))
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert "mac" in arrived[0]["tap"]
        assert open_fds() == before and namespace.names() == {"lo"}
        monkeypatch.undo()
        await agent.stop()

    run(main())


@needs_tap
@pytest.mark.parametrize(
    ("by", "says"), [(signal.SIGKILL, r"died \(status -9\)"), (signal.SIGALRM, r"took longer than 4\.0 s")]
)
def test_child_dies(run: Run, namespace: Namespace, by: signal.Signals, says: str) -> None:
    """A child that crashes, or whose alarm rings, costs its own request and no other."""

    async def main() -> None:
        agent = Agent()
        await agent.start()
        pid = agent.pid
        tap = await agent.open_tap(namespace.fd, PLAN)
        await until(lambda: not children_of(pid))
        asking = asyncio.create_task(agent.open_tap(namespace.fd, PLAN))  # finds the name busy for half a second
        await until(lambda: children_of(pid))
        os.kill(children_of(pid)[0], by)
        with pytest.raises(AgentUnavailable, match=says):
            await asking
        os.close(tap.fd)
        tap = await agent.open_tap(namespace.fd, PLAN)
        assert agent.pid == pid
        os.close(tap.fd)
        await until(lambda: not children_of(pid))
        await agent.stop()

    run(main())


def test_more_than_its_socket_holds(run: Run) -> None:
    """A stopped agent's socket fills; the requests wait, and all are answered when it goes on."""

    async def main() -> None:
        agent = Agent(deadline=60)
        await agent.start()
        os.kill(agent.pid, signal.SIGSTOP)
        with tempfile.TemporaryFile() as wrong:
            asking = [asyncio.create_task(agent.open_tap(wrong.fileno(), PLAN)) for _ in range(400)]
            await asyncio.sleep(0.1)
            assert agent._life is not None and agent._life._writable is not None
            for task in asking[::7]:
                task.cancel()
            os.kill(agent.pid, signal.SIGCONT)
            answers = await asyncio.gather(*asking, return_exceptions=True)
        for n, answer in enumerate(answers):
            assert isinstance(answer, asyncio.CancelledError if n % 7 == 0 else NamespaceUnavailable)
        await agent.stop()

    run(main())


def test_stopped_with_a_request_under_way(run: Run, namespace: Namespace) -> None:
    async def main() -> None:
        agent = Agent()
        await agent.start()
        os.kill(agent.pid, signal.SIGSTOP)  # it cannot even see its socket close: it is killed then
        asking = asyncio.create_task(agent.open_tap(namespace.fd, PLAN))
        await asyncio.sleep(0.05)
        await agent.stop()
        with pytest.raises(AgentUnavailable):
            await asking

    run(main())


def test_ends_with_the_daemon() -> None:
    script = (
        "import asyncio\n"
        "from netd.netns.spawn import Agent\n"
        "async def main():\n"
        "    agent = Agent(); await agent.start(); print(agent.pid, flush=True); await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    daemon = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    agent = os.pidfd_open(int(daemon.stdout.readline()))
    daemon.kill()
    daemon.communicate()
    assert select.select([agent], [], [], 5)[0] == [agent]
    os.close(agent)


@pytest.mark.parametrize(
    ("program", "says"), [("/bin/false", r"did not start: (closed|died)"), ("/none/such", "cannot be started: No such")]
)
def test_cannot_be_started(run: Run, monkeypatch: pytest.MonkeyPatch, program: str, says: str) -> None:
    monkeypatch.setattr(sys, "executable", program)

    async def main() -> None:
        agent = Agent()
        with pytest.raises(AgentUnavailable, match=says):
            await agent.start()
        with tempfile.TemporaryFile() as wrong, pytest.raises(AgentUnavailable):
            await agent.open_tap(wrong.fileno(), PLAN)
        await agent.stop()

    run(main())


@pytest.mark.parametrize(
    "message", ['{"agent": 999}', "nonsense", "[]", '{"id": 1}', '{"agent": 1}{', '{"id": "x", "mac": 1}', "7"]
)
def test_another_programs_language(run: Run, monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    """What stands where the agent should says something else, and sends an fd with it."""
    script = (
        "import socket, sys; s = socket.socket(fileno=int(sys.argv[1]));"
        f"socket.send_fds(s, [{message!r}.encode()], [0]); s.recv(1)"
    )

    def other(channel: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", script, str(channel)], pass_fds=(channel,))

    monkeypatch.setattr(spawn, "_popen", other)

    async def main() -> None:
        agent = Agent(deadline=0.7)
        with pytest.raises(AgentUnavailable):
            await agent.start()
        await agent.stop()

    run(main())


@needs_tap
def test_no_room_for_the_fd(run: Run, namespace: Namespace) -> None:
    """At the limit of open files the kernel drops the TAP's fd: a clear error, and no fd too many later."""
    import resource

    async def main() -> OpenTap:
        agent = Agent()
        await agent.start()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        os.kill(agent.pid, signal.SIGSTOP)
        asking = asyncio.create_task(agent.open_tap(namespace.fd, PLAN))
        await asyncio.sleep(0.05)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            os.kill(agent.pid, signal.SIGCONT)
            with pytest.raises(spawn.TapUnavailable, match="no free file descriptor"):
                await asking
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        tap = await agent.open_tap(namespace.fd, PLAN)
        await agent.stop()
        return tap

    started = time.monotonic()
    os.close(run(main()).fd)
    assert time.monotonic() - started < 5
