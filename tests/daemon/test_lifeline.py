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
from netd.lifeline import Unlinks, Watch
from netd.specs import Lifeline
from tests.lab import open_fds, until


@pytest.fixture(autouse=True)
def no_fd_is_lost() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


class Ends:
    """A watch and how often it has fired."""

    def __init__(self, unlinks: Unlinks) -> None:
        self.count = 0
        self.watch = Watch(asyncio.get_running_loop(), unlinks, self._ended)

    def _ended(self) -> None:
        self.count += 1

    async def not_yet(self) -> None:
        """Two turns of the loop after everything that is pending has been polled."""
        for _ in range(3):
            await asyncio.sleep(0.005)
        assert self.count == 0


@pytest_asyncio.fixture
async def unlinks() -> AsyncIterator[Unlinks]:
    unlinks = Unlinks(asyncio.get_running_loop())
    yield unlinks
    unlinks.close()


@pytest_asyncio.fixture
async def ends(unlinks: Unlinks) -> AsyncIterator[Ends]:
    ends = Ends(unlinks)
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


# --- many paths, one inotify ----------------------------------------------------------------------------------------


def inotifies() -> int:
    return sum(
        os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:inotify" for fd in os.listdir("/proc/self/fd") if _is(fd)
    )


def _is(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


async def test_all_paths_share_one_inotify_and_each_ends_by_its_own(unlinks: Unlinks, tmp_path: Path) -> None:
    """fs.inotify.max_user_instances is 128."""
    paths, all_ends = [], []
    for number in range(300):
        directory = tmp_path / str(number % 3)
        directory.mkdir(exist_ok=True)
        paths.append(directory / str(number))
        paths[-1].write_text("")
        all_ends.append(Ends(unlinks))
        all_ends[-1].watch.add(Lifeline("path", path=str(paths[-1])))
    assert inotifies() == 1
    for number in range(0, 300, 2):
        paths[number].unlink()
    await until(lambda: sum(ends.count for ends in all_ends) == 150)
    assert [ends.count for ends in all_ends] == [1, 0] * 150
    for path, ends in zip(paths[1:150:2], all_ends[1:150:2], strict=True):
        ends.watch.close()
        path.unlink()
    paths[151].unlink()
    await until(lambda: all_ends[151].count == 1)
    assert sum(ends.count for ends in all_ends) == 151
    for number in range(153, 300, 2):
        if number % 3 == 0:
            paths[number].unlink()
    (tmp_path / "0").rmdir()
    (tmp_path / "1").rename(tmp_path / "elsewhere")
    await until(lambda: all(all_ends[number].count for number in range(153, 300, 2) if number % 3 < 2))
    assert not any(all_ends[number].count for number in range(153, 300, 2) if number % 3 == 2)
    for ends in all_ends:
        ends.watch.close()


async def test_a_directory_that_comes_again_is_watched_again(unlinks: Unlinks, tmp_path: Path) -> None:
    path = tmp_path / "netns" / "n"
    for _ in range(3):
        path.parent.mkdir()
        path.write_text("")
        ends = Ends(unlinks)
        ends.watch.add(Lifeline("path", path=str(path)))
        await ends.not_yet()
        path.unlink()
        path.parent.rmdir()
        await until(lambda ends=ends: ends.count == 1)


async def test_two_networks_of_one_path_where_the_first_ends_the_second(unlinks: Unlinks, tmp_path: Path) -> None:
    path = tmp_path / "n"
    path.write_text("")
    both = [Ends(unlinks), Ends(unlinks)]

    def gone() -> None:
        for ends in both:
            ends.watch.close()

    for ends in both:
        ends.watch.add(Lifeline("path", path=str(path)))
        ends.watch._ended = gone
    path.unlink()
    await asyncio.sleep(0.05)


async def test_the_end_of_a_path_takes_no_time(unlinks: Unlinks, tmp_path: Path) -> None:
    """To close an inotify takes 10 ms and more, in which nobody's packets are carried."""
    spans = []
    for _ in range(5):
        path = tmp_path / "n"
        path.write_text("")
        ends = Ends(unlinks)
        ends.watch.add(Lifeline("path", path=str(path)))
        begin = time.perf_counter()
        ends.watch.close()
        spans.append(time.perf_counter() - begin)
    assert min(spans) < 0.003
