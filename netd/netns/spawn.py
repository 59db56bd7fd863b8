"""The daemon's side of the agent: starts it, asks it, starts it again when it died.

Theory of operation. ``Agent`` is the lasting object; one ``_Life`` is one life of the process behind it, with its
socket, its pidfd and the requests it owes an answer. A life ends when the pidfd or the socket says so, or when a
deadline passed unanswered (then it is killed: its children give up before our deadline, so it hangs). The requests
of an ended life are asked once more in the next.

No descriptor is lost: what arrives belongs to an ``_Answer``, out of which its caller, if there is still one, takes
what it passes on; the rest is closed. asyncio's streams drop SCM_RIGHTS, so the socket is read with recvmsg(2) from the
loop's reader callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from netd.errors import AgentUnavailable, LimitReached, NamespaceUnavailable, NetdError, TapUnavailable
from netd.netns import view
from netd.netns.channel import FDS_MAX, PROTOCOL, receive, send
from netd.netns.plan import HostView, OpenTap, SocketPlan, TapPlan

DEADLINE = 5.0  # seconds for one request, a restart of the agent included
START_SECONDS = 30.0  # an agent not ready by then never will be; on a cold disk the first imports take their time
STOP_SECONDS = 1.0  # how long the agent may take to see that its socket closed
BATCH = 64  # messages read per turn of the loop

# What the service manager tells the daemon is not for its child.
PRIVATE_ENVIRONMENT = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ERRORS: dict[str, type[NetdError]] = {e.code: e for e in (NamespaceUnavailable, TapUnavailable, AgentUnavailable)}


class _Ended(Exception):
    """This life of the agent is over; the request may be asked in the next."""


class _Answer:
    """What the agent answered, and the descriptors that came with it."""

    def __init__(self, reply: dict[str, Any], fds: list[int]) -> None:
        self.reply = reply
        self.fds = fds  # those that nobody has taken yet

    def take(self) -> int:
        """The next descriptor, from now on the caller's; -1 where the kernel had no room for it in our table."""
        return self.fds.pop(0) if self.fds else -1

    def close(self) -> None:
        """Closes what was not taken."""
        while self.fds:
            os.close(self.fds.pop())


class Agent:
    """Works in network namespaces, and reads the host's, through a process that may. Belongs to one event loop."""

    def __init__(self, deadline: float = DEADLINE) -> None:
        self._deadline = deadline
        self._life: _Life | None = None
        self._starting = asyncio.Lock()
        self._stopped = True

    @property
    def pid(self) -> int:
        """The agent's process id, 0 when there is none now."""
        return self._life.pid if self._life is not None and not self._life.ended else 0

    async def start(self) -> None:
        """Starts the agent and waits until it can serve. Raises AgentUnavailable."""
        self._stopped = False
        try:
            async with asyncio.timeout(self._deadline):
                await self._living()
        except TimeoutError:
            raise AgentUnavailable(f"the namespace agent did not start within {self._deadline:g} s") from None
        except _Ended as e:
            raise AgentUnavailable(f"the namespace agent did not start: {e}", "see the daemon's log") from e

    async def stop(self) -> None:
        """Ends the agent; requests under way fail with AgentUnavailable. May be called at any time, and again."""
        self._stopped = True
        if self._life is not None:
            life, self._life = self._life, None
            await life.close()

    async def open_tap(self, netns_fd: int, plan: TapPlan) -> OpenTap:
        """Makes, or attaches to, the plan's TAP in the network namespace; the fd that comes back is the caller's.

        ``netns_fd`` stays the caller's and may be closed as soon as this ends, however it ends. Raises
        NamespaceUnavailable (gone, not one, not this user's), TapUnavailable (the device, its configuration),
        AgentUnavailable (no answer within the deadline, or the agent died twice).
        """

        def opened(answer: _Answer) -> OpenTap:
            reply = answer.reply["tap"]
            features = {key: reply[key] for key in ("mac", "vnet_hdr", "offload", "uso", "address6", "no_ipv6")}
            left_out = [str(why) for why in reply["left_out"]]
            if (fd := answer.take()) < 0:
                raise TapUnavailable("no free file descriptor for the TAP", "raise LimitNOFILE")
            if features["no_ipv6"]:
                logger.warning("a namespace goes without IPv6: %s", features["no_ipv6"])
            for why in left_out:
                logger.warning("a namespace goes without a route: %s", why)
            return OpenTap(fd=fd, **features)

        return await self._ask("tap", {"plan": asdict(plan)}, opened, netns_fd)

    async def open_sockets(self, netns_fd: int, plans: Sequence[SocketPlan]) -> list[int | str]:
        """Makes sockets in the network namespace: for each a descriptor, or why there is none.

        The descriptors are non-blocking, close-on-exec and the caller's; each keeps the namespace alive. The reasons
        are the kernel's ("Address already in use"). For an instant after the answer the agent's child has copies: a
        port closed at once may not be free at once. ``netns_fd`` as in ``open_tap``. Raises LimitReached for more
        than FDS_MAX of them, NamespaceUnavailable, AgentUnavailable.
        """
        count = sum(plan.count for plan in plans)
        if any(plan.count < 1 for plan in plans):
            raise ValueError("a plan of less than one socket")
        if count > FDS_MAX:
            raise LimitReached(f"at most {FDS_MAX} sockets are opened at once, not {count}")

        def opened(answer: _Answer) -> list[int | str]:
            reasons = answer.reply["sockets"]
            if len(reasons) != count or not all(reason is None or isinstance(reason, str) for reason in reasons):
                raise ValueError(f"{len(reasons)} answers for {count} sockets")
            results: list[int | str] = []
            for reason in reasons:
                fd = answer.take() if reason is None else -1
                results.append(fd if fd >= 0 else reason or os.strerror(errno.EMFILE))
            return results

        fields = {"plans": [asdict(plan) for plan in plans]}
        return await self._ask("sockets", fields, opened, netns_fd) if plans else []

    async def host_view(self) -> HostView:
        """The network of the namespace that the daemon is in, as it is now. Raises AgentUnavailable."""

        def seen(answer: _Answer) -> HostView:
            reply = answer.reply["view"]
            if reply["cut_short"]:
                logger.warning("the host has too many routes or addresses to look at all of them")
            return view.parse(reply)

        return await self._ask("view", {}, seen)

    async def _ask(
        self, op: str, fields: dict[str, Any], read: Callable[[_Answer], T], netns_fd: int | None = None
    ) -> T:
        """One request and what ``read`` makes of its answer.

        ``read`` takes the descriptors that it passes on, after all that may fail. Raises what the agent answered,
        NamespaceUnavailable for a ``netns_fd`` that is closed, AgentUnavailable.
        """
        held: list[int] = []
        if netns_fd is not None:
            try:
                held.append(os.dup(netns_fd))  # ours for the second try, whatever becomes of the caller's
            except OSError as e:
                raise NamespaceUnavailable(f"the namespace's descriptor is none: {e.strerror}") from e
        life: _Life | None = None
        try:
            async with asyncio.timeout(self._deadline):
                try:
                    life = await self._living()
                    return await life.ask(op, fields, read, held)
                except _Ended:
                    life = await self._living()
                    return await life.ask(op, fields, read, held)
        except TimeoutError:
            if life is not None:
                life.end("did not answer in time")
            raise AgentUnavailable(f"the namespace agent did not answer within {self._deadline:g} s") from None
        except _Ended as e:
            raise AgentUnavailable(f"the namespace agent ended twice: {e}", "see the daemon's log") from e
        finally:
            for fd in held:
                os.close(fd)

    async def _living(self) -> _Life:
        async with self._starting:
            if self._stopped:
                raise AgentUnavailable("the namespace agent is stopped")
            life = self._life
            if life is None or life.ended:
                life = self._life = _Life()
        await life.ready()
        return life


class _Life:
    """One life of the agent's process."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._popen, self._pidfd, self._channel = _start()
        self.pid = self._popen.pid
        self.ended = False
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._exited: asyncio.Future[None] = self._loop.create_future()
        self._pending: dict[int, asyncio.Future[_Answer]] = {}
        self._writable: asyncio.Future[None] | None = None
        self._last = 0
        self._overdue = self._loop.call_later(START_SECONDS, self.end, "did not start")
        self._loop.add_reader(self._channel.fileno(), self._receive)
        self._loop.add_reader(self._pidfd, self._reap)

    async def ready(self) -> None:
        """Waits until the agent can serve. Raises _Ended."""
        await asyncio.shield(self._ready)

    async def ask(self, op: str, fields: dict[str, Any], read: Callable[[_Answer], T], fds: list[int]) -> T:
        """One request and what ``read`` makes of its answer. Raises _Ended and what the agent answered."""
        self._last += 1
        request = self._last
        coming: asyncio.Future[_Answer] = self._loop.create_future()
        self._pending[request] = coming
        try:
            await self._send({"id": request, "op": op, **fields}, fds)
            answer = await coming
            try:
                return read(answer)
            except (KeyError, TypeError, ValueError) as e:
                self.end(f"speaks another language: {e!r}")
                raise _Ended(f"speaks another language: {e!r}") from e
        finally:
            del self._pending[request]
            # Cancelled, or timed out, perhaps in the very turn in which the answer came.
            if coming.done() and not coming.cancelled() and coming.exception() is None:
                coming.result().close()

    def end(self, why: str) -> None:
        """Kills the process; what it owes fails with _Ended."""
        if self.ended:
            return
        self.ended = True
        self._overdue.cancel()
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            self._popen.kill()
        for waiting in [self._ready, self._writable, *self._pending.values()]:
            if waiting is not None and not waiting.done():
                waiting.set_exception(_Ended(why))
                waiting.exception()  # seen: nobody need wait for it

    async def close(self) -> None:
        """Ends the process in good order and reaps it."""
        if not self.ended:
            self._channel.shutdown(socket.SHUT_RDWR)  # it ends by itself on this
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await asyncio.shield(self._exited)
            self.end("is stopped")
        await asyncio.shield(self._exited)

    async def _send(self, message: dict[str, Any], fds: list[int]) -> None:
        while not self.ended:
            try:
                send(self._channel, message, fds)
                return
            except BlockingIOError:  # the agent's queue is full
                if self._writable is None or self._writable.done():
                    self._writable = self._loop.create_future()
                    self._loop.add_writer(self._channel.fileno(), self._wake, self._writable)
                await asyncio.shield(self._writable)
            except (BrokenPipeError, ConnectionResetError):
                self.end("closed its socket")
            except OSError as e:  # ETOOMANYREFS, EBADF, …: of this request, not of the agent
                raise AgentUnavailable(f"the request cannot be handed over: {e.strerror}") from e
        raise _Ended("is gone")

    def _wake(self, writable: asyncio.Future[None]) -> None:
        self._loop.remove_writer(self._channel.fileno())
        if not writable.done():
            writable.set_result(None)

    def _receive(self) -> None:
        for _ in range(BATCH):
            try:
                message, fds = receive(self._channel)
            except BlockingIOError:
                return
            except OSError as e:
                return self.end(f"broke its socket: {e.strerror}")
            except ValueError as e:
                return self.end(f"speaks another language: {e!r}")
            if message is None:
                return self.end("closed its socket")
            answer = _Answer(message, fds)
            try:
                if not self._settle(answer):
                    answer.close()
            except (KeyError, TypeError, ValueError) as e:
                answer.close()
                return self.end(f"speaks another language: {e!r}")

    def _settle(self, answer: _Answer) -> bool:
        """Settles the request that this answers; True if it is up to the request's caller now."""
        reply = answer.reply
        if "agent" in reply:
            if reply["agent"] != PROTOCOL:
                raise ValueError(f"protocol {reply['agent']}, not {PROTOCOL}")
            self._overdue.cancel()
            if not self._ready.done():
                self._ready.set_result(None)
            return False
        coming = self._pending.get(reply["id"])
        if coming is None or coming.done():
            return False  # its caller has gone
        error: NetdError | None = None
        if "spilled" in reply:  # MSG_CTRUNC: the kernel had no room for it in our table
            error = AgentUnavailable("no free file descriptor for the agent's answer", "raise LimitNOFILE")
        elif "error" in reply:
            error = _ERRORS[reply["error"]](reply["message"], reply["hint"])
        if error is not None:
            coming.set_exception(error)
            coming.exception()  # seen: its caller may be cancelled before it looks
            return False
        coming.set_result(answer)
        return True

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = self._popen.wait()
        if not self.ended:
            self._receive()  # answers that it still gave
        self.end(f"died (status {status})")
        if not self._exited.done():
            self._exited.set_result(None)


def _start() -> tuple[subprocess.Popen[bytes], int, socket.socket]:
    """Starts the agent: (the process, its pidfd, our end of the socket). Raises AgentUnavailable."""
    with contextlib.ExitStack() as undo:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            with theirs:
                ours.setblocking(False)
                popen = _popen(theirs.fileno())
            undo.callback(popen.wait)
            undo.callback(popen.kill)
            pidfd = os.pidfd_open(popen.pid)
        except OSError as e:
            raise AgentUnavailable(f"the namespace agent cannot be started: {e.strerror}") from e
        undo.pop_all()
    return popen, pidfd, ours


def _popen(channel: int) -> subprocess.Popen[bytes]:
    """A session of its own; this package, and nothing of the working directory, on its path."""
    environment = {name: value for name, value in os.environ.items() if name not in PRIVATE_ENVIRONMENT}
    package = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "netd.netns.agent", str(channel)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(channel,),
        cwd="/",
        env=environment,
        start_new_session=True,
    )
