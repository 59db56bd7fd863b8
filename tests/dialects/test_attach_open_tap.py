"""Daemon.attach with a TAP that is open already: who closes it, and what it is known by."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from netd.daemon import Daemon
from netd.dialects.handed_tap import handed_tap
from netd.errors import NamespaceUnavailable, NetworkExists
from netd.netns.plan import OpenTap
from netd.specs import Lifeline, NetworkSpec
from tests.dialects.tap_maker import Caller
from tests.lab import open_fds
from tests.stage import daemon, settings, world

__all__ = ["daemon", "settings", "world"]  # fixtures

SPEC = NetworkSpec(configure=False)


def opened(caller: Caller) -> OpenTap:
    """A second descriptor of the caller's TAP, as the shim would have sent it."""
    handed = handed_tap(os.dup(caller.fd), True)
    os.close(handed.netns_fd)
    return handed.tap


async def test_in_a_namespace_that_we_may_not_know(daemon: Daemon) -> None:
    """Two of the same name are two; one that is handed over twice is known by its MAC."""
    with Caller() as one, Caller() as two:
        before = open_fds()
        first = await daemon.attach(SPEC, -1, Lifeline("explicit"), None, opened(one))
        second = await daemon.attach(SPEC, -1, Lifeline("explicit"), None, opened(two))
        assert first.netns_inode == second.netns_inode == 0 and first.tap.mac != second.tap.mac
        with pytest.raises(NetworkExists, match=f"a network at tap0 already: {first.name}"):
            await daemon.attach(SPEC, -1, Lifeline("explicit"), None, opened(one))
        await daemon.detach(first)
        again = await daemon.attach(SPEC, -1, Lifeline("explicit"), None, opened(one))
        for network in (second, again):
            await daemon.detach(network)
        assert open_fds() == before
        assert "tap0" in one.run("ip", "-br", "link"), "the caller's own descriptor keeps the device"


async def test_is_closed_when_it_cannot_be_attached(daemon: Daemon) -> None:
    with Caller() as caller:
        await daemon.attach(replace(SPEC, name="taken"), -1, Lifeline("explicit"), None, opened(caller))
        before = open_fds()
        with Caller() as other:
            with pytest.raises(NetworkExists, match="the name is taken"):
                await daemon.attach(replace(SPEC, name="taken"), -1, Lifeline("explicit"), None, opened(other))
            with pytest.raises(NamespaceUnavailable, match="exit_fd handed over is no open descriptor"):
                await daemon.attach(SPEC, -1, Lifeline("exit_fd", 9999), None, opened(other))
        with pytest.raises(NamespaceUnavailable, match="no network namespace"):
            await daemon.attach(SPEC, -1, Lifeline("explicit"))
        assert open_fds() == before
