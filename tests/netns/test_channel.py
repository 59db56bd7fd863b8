"""The agent's socket: objects of any size, descriptors, and what may go wrong on the way."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from netd.netns import channel

from .conftest import open_fds

Pair = tuple[socket.socket, socket.socket]
LARGE = {"id": 7, "text": "x" * 100_000}


@pytest.fixture
def pair(no_fd_is_lost: None) -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize("message", [{"id": 7}, {"id": 7, "text": "ü\udcff\0"}, LARGE], ids=["small", "odd", "large"])
@pytest.mark.parametrize("count", [0, 1, 252])
def test_there_and_back(pair: Pair, message: dict[str, Any], count: int) -> None:
    ours, theirs = pair
    first, second = os.pipe()
    before = open_fds()
    channel.send(ours, message, [first] * count)
    received, fds = channel.receive(theirs)
    assert received == message and len(fds) == count
    assert all(os.path.sameopenfile(fd, first) and not os.get_inheritable(fd) for fd in fds)
    for fd in fds:
        os.close(fd)
    assert open_fds() == before
    os.close(first)
    os.close(second)


def test_too_many_descriptors(pair: Pair) -> None:
    ours, theirs = pair
    channel.send(ours, {"id": 7}, [0] * channel.FDS_MAX)
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        channel.send(ours, {"id": 7}, [0] * (channel.FDS_MAX + 1))
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        channel.send(ours, LARGE, [0] * channel.FDS_MAX)
    _, fds = channel.receive(theirs)
    assert len(fds) == channel.FDS_MAX
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("message", [{"id": 7}, LARGE], ids=["small", "large"])
def test_no_room_for_all(pair: Pair, message: dict[str, Any]) -> None:
    """Those at the end are missing, an object's memfd among them: then the others are still told apart from it."""
    ours, theirs = pair
    channel.send(ours, message, [0] * 40)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = sorted(set(range(200)) - {int(fd) for fd in os.listdir("/proc/self/fd")})[20]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        received, fds = channel.receive(theirs)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert received == ({"id": 7, "spilled": True} if message is LARGE else message)
    assert 20 <= len(fds) <= 21
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("data", [b"nonsense", b"[]", b"\xff", b"7", b'{"id": 7', b'{"spilled": true}'])
def test_no_object(pair: Pair, data: bytes) -> None:
    ours, theirs = pair
    socket.send_fds(ours, [data], [0, 1])
    with pytest.raises((ValueError, OSError)):
        channel.receive(theirs)


def test_an_object_of_any_size(pair: Pair) -> None:
    ours, theirs = pair
    fd = os.memfd_create("large")
    os.ftruncate(fd, channel.SPILLED_MAX + 1)
    socket.send_fds(ours, [b'{"id": 7, "spilled": true}'], [fd])
    os.close(fd)
    with pytest.raises(ValueError, match=f"an object of {channel.SPILLED_MAX + 1} bytes"):
        channel.receive(theirs)


def test_the_end(pair: Pair) -> None:
    ours, theirs = pair
    ours.shutdown(socket.SHUT_RDWR)
    assert channel.receive(theirs) == (None, [])
