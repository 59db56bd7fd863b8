"""The agent's child that made bare sockets and stays for more of them."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from netd.errors import AgentUnavailable
from netd.netns.agent import STAYING_MAX
from netd.netns.plan import SocketPlan
from netd.netns.spawn import Agent

from .conftest import Namespace, Run
from .test_agent import children_of, ready_of, until


async def make(agent: Agent, namespace: Namespace, count: int = 1) -> None:
    for fd in await agent.open_sockets(namespace.fd, [SocketPlan("connect", count=count)]):
        assert isinstance(fd, int)
        os.close(fd)
    await asyncio.sleep(0.05)  # until the agent has heard of it as well


def test_one_that_made_bare_sockets_stays_for_more_of_them(run: Run, namespace: Namespace) -> None:
    async def main() -> None:
        agent = Agent()
        await agent.start()
        await until(lambda: ready_of(agent.pid))
        [maker] = ready_of(agent.pid)
        for count in (1, 100, 253, 3):
            await make(agent, namespace, count)
            assert children_of(agent.pid) == [maker]
            assert len(os.listdir(f"/proc/{maker}/fd")) < 12, "what it made is closed there"
        await asyncio.gather(*(make(agent, namespace, 100) for _ in range(3)))  # at once: others help
        await until(lambda: not children_of(agent.pid))
        await agent.stop()

    run(main())


def test_one_that_stayed_and_died_is_not_missed(run: Run, namespace: Namespace) -> None:
    async def main() -> None:
        agent = Agent()
        await agent.start()
        await until(lambda: ready_of(agent.pid))
        pid, [maker] = agent.pid, ready_of(agent.pid)
        await make(agent, namespace)
        os.kill(maker, signal.SIGSTOP)
        asking = asyncio.create_task(make(agent, namespace))
        await asyncio.sleep(0.05)
        os.kill(maker, signal.SIGKILL)
        with pytest.raises(AgentUnavailable, match="died"):
            await asking
        await make(agent, namespace)
        assert agent.pid == pid and maker not in children_of(pid)
        await agent.stop()

    run(main())


def test_so_many_stay(run: Run) -> None:
    """One in each namespace that wants sockets, up to a bound; further ones are served all the same."""
    namespaces = [Namespace() for _ in range(STAYING_MAX + 2)]

    async def main() -> int:
        agent = Agent()
        await agent.start()
        most = 0
        for namespace in namespaces:
            await until(lambda: ready_of(agent.pid))
            await make(agent, namespace)
            most = max(most, len(children_of(agent.pid)))
        await agent.stop()
        return most

    try:
        assert 2 <= run(main()) <= STAYING_MAX + 1  # and one that is about to go
    finally:
        for namespace in namespaces:
            namespace.close()
