"""What ends a network, each kind at its real kernel object, on uvloop as the daemon runs."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from netd.errors import NamespaceUnavailable
from netd.lifeline import Watch
from netd.specs import Lifeline
from tests.lab import open_fds, until


@pytest.fixture(autouse=True)
def no_fd_is_lost() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


class Ends:
    """A watch and how often it has fired."""

    def __init__(self) -> None:
        self.count = 0
        self.watch = Watch(asyncio.get_running_loop(), self._ended)

    def _ended(self) -> None:
        self.count += 1

    async def not_yet(self) -> None:
        """Two turns of the loop after everything that is pending has been polled."""
        for _ in range(3):
            await asyncio.sleep(0.005)
        assert self.count == 0


@pytest_asyncio.fixture
async def ends() -> AsyncIterator[Ends]:
    ends = Ends()
    yield ends
    ends.watch.close()


async def test_exit_fd_ends_with_its_last_writer_and_not_by_what_is_written(ends: Ends) -> None:
    reading, writing = os.pipe()
    second = os.dup(writing)
    try:
        ends.watch.add(Lifeline("exit_fd", reading))
        os.write(writing, b"not the end" * 1000)
        await ends.not_yet()
        os.close(writing)
        await ends.not_yet()
    finally:
        os.close(second)
    await until(lambda: ends.count == 1)
    await asyncio.sleep(0.01)
    assert ends.count == 1
    os.fstat(reading)  # the descriptor stays its owner's
    os.close(reading)


async def test_what_lies_in_an_exit_fd_is_not_read_and_costs_no_time(ends: Ends) -> None:
    """slirp4netns polls for POLLHUP alone."""
    reading, writing = os.pipe()
    ends.watch.add(Lifeline("exit_fd", reading))
    os.write(writing, b"for somebody else")
    before = time.process_time()
    await asyncio.sleep(0.2)
    assert time.process_time() - before < 0.1, "the loop spins on a readable descriptor"
    assert ends.count == 0 and os.read(reading, 100) == b"for somebody else"
    os.close(writing)
    await until(lambda: ends.count == 1)
    os.close(reading)


async def test_exit_fd_with_unread_data_at_its_end(ends: Ends) -> None:
    reading, writing = os.pipe()
    ends.watch.add(Lifeline("exit_fd", reading))
    os.write(writing, bytes(60000))
    os.close(writing)
    await until(lambda: ends.count == 1)
    os.close(reading)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "regular", "directory"])
async def test_an_exit_fd_that_can_never_hang_up(ends: Ends, tmp_path: Path, path: str) -> None:
    """slirp4netns polls it and waits for ever; so do we."""
    if path == "regular":
        path = str(tmp_path / "file")
        Path(path).write_text("")
    fd = os.open(str(tmp_path) if path == "directory" else path, os.O_RDONLY)
    ends.watch.add(Lifeline("exit_fd", fd))
    await ends.not_yet()
    os.close(fd)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
async def test_the_shims_socket(ends: Ends, kind: socket.SocketKind) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours:
        ends.watch.add(Lifeline("shim", ours.fileno()))
        theirs.send(b"chatter")
        await ends.not_yet()
        theirs.close()
        await until(lambda: ends.count == 1)


async def test_a_shim_that_only_stops_writing_is_gone(ends: Ends) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ends.watch.add(Lifeline("shim", ours.fileno()))
        theirs.shutdown(socket.SHUT_WR)
        await until(lambda: ends.count == 1)


async def test_pidfd(ends: Ends) -> None:
    process = subprocess.Popen(["sleep", "60"])
    pidfd = os.pidfd_open(process.pid)
    ends.watch.add(Lifeline("pidfd", pidfd))
    await ends.not_yet()
    process.kill()
    await until(lambda: ends.count == 1)
    process.wait()
    os.close(pidfd)


async def test_path_ends_with_its_unlink_alone(ends: Ends, tmp_path: Path) -> None:
    path, other = tmp_path / "netns-1", tmp_path / "netns-11"
    path.write_text("")
    other.write_text("")
    ends.watch.add(Lifeline("path", path=str(path)))
    other.unlink()
    (tmp_path / "another").write_text("")
    path.write_text("touched")
    await ends.not_yet()
    path.unlink()
    await until(lambda: ends.count == 1)


@pytest.mark.parametrize("how", ["renamed", "replaced", "directory removed", "directory renamed"])
async def test_other_ways_a_path_may_end(ends: Ends, tmp_path: Path, how: str) -> None:
    directory = tmp_path / "netns"
    directory.mkdir()
    path = directory / "n"
    path.write_text("")
    ends.watch.add(Lifeline("path", path=str(path)))
    if how == "renamed":
        path.rename(directory / "m")
    elif how == "replaced":
        path.unlink()
        path.write_text("")
    elif how == "directory removed":
        path.unlink()
        directory.rmdir()
    else:
        directory.rename(tmp_path / "elsewhere")
    await until(lambda: ends.count == 1)


async def test_a_path_that_ends_while_the_queue_of_events_is_full(ends: Ends, tmp_path: Path) -> None:
    """inotify(7), IN_Q_OVERFLOW: the kernel has thrown events away, the unlink perhaps among them."""
    with open("/proc/sys/fs/inotify/max_queued_events") as file:
        size = int(file.read())
    if size > 70000:
        pytest.skip(f"fs.inotify.max_queued_events is {size}")
    path = tmp_path / "n"
    path.write_text("")
    ends.watch.add(Lifeline("path", path=str(path)))
    a, b = tmp_path / "a", tmp_path / "b"
    for _ in range(size // 2 + 100):  # different names, or the kernel folds them into one event
        os.close(os.open(a, os.O_CREAT | os.O_WRONLY, 0o600))
        os.close(os.open(b, os.O_CREAT | os.O_WRONLY, 0o600))
        a.unlink()
        b.unlink()
    path.unlink()
    await until(lambda: ends.count == 1)


async def test_what_has_ended_already(ends: Ends, tmp_path: Path) -> None:
    for path in (tmp_path / "never", tmp_path / "nowhere" / "n"):
        with pytest.raises(NamespaceUnavailable):
            ends.watch.add(Lifeline("path", path=str(path)))
    reading, writing = os.pipe()
    os.close(writing)
    ends.watch.add(Lifeline("exit_fd", reading))
    await until(lambda: ends.count == 1)
    os.close(reading)


async def test_two_lifelines_end_it_once(ends: Ends) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, writing = os.pipe()
    with ours:
        ends.watch.add(Lifeline("shim", ours.fileno()))
        ends.watch.add(Lifeline("exit_fd", reading))
        theirs.close()
        os.close(writing)
        await until(lambda: ends.count)
        await asyncio.sleep(0.01)
        assert ends.count == 1
    os.close(reading)


async def test_explicit_watches_nothing_and_closing_is_idempotent(ends: Ends) -> None:
    ends.watch.add(Lifeline("explicit"))
    await ends.not_yet()
    ends.watch.close()
    ends.watch.close()
