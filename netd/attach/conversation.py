"""One shim's connection: steps out, answers and descriptors in, each in bounded time.

asyncio's and uvloop's streams drop SCM_RIGHTS without a word, so this reads the socket itself.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import select
import socket

from netd.attach.message import MAX_MESSAGE, Answer, Exit, Hello, Stay, Step, read_answer, read_hello, write
from netd.errors import InvalidSpec, NetdError

STEP_DEADLINE = 5.0  # seconds for the shim to do one step; the shim itself gives up after 10
_INT = array.array("i").itemsize
_ROOM = 4  # descriptors taken off one message; the kernel drops the others and says so


class ShimGone(NetdError):
    """The shim was killed, closed its end, or did not do a step in time."""

    code = "shim_gone"


class Conversation:
    """The daemon's end. ``sock`` is connected and stays its owner's to close.

    Errors of every method: ShimGone, and InvalidSpec for what is not of the protocol.
    """

    def __init__(self, sock: socket.socket, deadline: float = STEP_DEADLINE) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._deadline = deadline

    async def hello(self) -> Hello:
        """The shim's first message."""
        data, fds = await self._receive()
        _close_all(fds)
        if fds:
            raise InvalidSpec("not a message of the attach protocol: descriptors came with the first one")
        return read_hello(data)

    async def ask(self, step: Step) -> Answer:
        """Have ``step`` done, for its effect."""
        answer, fd = await self.ask_fd(step)
        if fd >= 0:
            _close_all([fd])
            raise InvalidSpec("the shim sent a descriptor that was not asked for")
        return answer

    async def ask_fd(self, step: Step) -> tuple[Answer, int]:
        """Have ``step`` done. Also the descriptor that came with the answer, now the caller's to close, or -1."""
        self._send(step)
        data, fds = await self._receive()
        if len(fds) > 1:
            _close_all(fds)
            raise InvalidSpec("the shim sent more descriptors than were asked for")
        try:
            answer = read_answer(data)
        except InvalidSpec:
            _close_all(fds)
            raise
        if fds and not answer.ok:
            _close_all(fds)
            raise InvalidSpec("the shim sent a descriptor and an error")
        return answer, fds[0] if fds else -1

    def tell(self, step: Stay | Exit) -> None:
        """Send a step that has no answer."""
        self._send(step)

    def gone(self) -> bool:
        """Whether the shim has closed its end, now."""
        poll = select.poll()
        poll.register(self._sock, 0)  # POLLHUP and POLLERR are always reported
        return bool(poll.poll(0))

    def lifeline(self) -> int:
        """A descriptor of this connection for the caller to keep: it hangs up when the shim ends."""
        return os.dup(self._sock.fileno())

    def _send(self, step: Step) -> None:
        try:
            self._sock.send(write(step))
        except OSError as error:  # EAGAIN too: a shim that reads nothing is none
            raise ShimGone(f"the shim cannot be told to {step.op}: {error.strerror}") from None

    async def _receive(self) -> tuple[bytes, list[int]]:
        try:
            async with asyncio.timeout(self._deadline):
                while True:
                    try:
                        return self._take()
                    except BlockingIOError:
                        await self._readable()
        except TimeoutError:
            raise ShimGone(f"the shim said nothing for {self._deadline:g} s") from None
        except ConnectionError as error:
            raise ShimGone(f"the shim is gone: {error.strerror}") from None

    def _take(self) -> tuple[bytes, list[int]]:
        data, ancillary, flags, _ = self._sock.recvmsg(
            MAX_MESSAGE, socket.CMSG_SPACE(_ROOM * _INT), socket.MSG_CMSG_CLOEXEC
        )
        fds = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % _INT])
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            _close_all(fds)
            if flags & socket.MSG_TRUNC:
                raise InvalidSpec(f"a message of the shim is longer than {MAX_MESSAGE} bytes")
            raise InvalidSpec("the shim sent more descriptors than were asked for")
        if not data:  # the end of a SOCK_SEQPACKET connection, or an empty message, which means nothing either
            _close_all(fds)
            raise ShimGone("the shim has ended")
        return data, list(fds)

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_reader(self._sock.fileno(), _resolve, ready)
        try:
            await ready
        finally:
            loop.remove_reader(self._sock.fileno())


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _close_all(fds: list[int] | array.array[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):  # close(2) releases the descriptor whatever it says
            os.close(fd)
