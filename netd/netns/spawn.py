"""The daemon's side of the agent: starts it, asks it, starts it again when it died.

Theory of operation. ``Agent`` is the lasting object; one ``_Life`` is one life of the process behind it, with its
socket, its pidfd and the requests it owes an answer. A life ends when the pidfd or the socket says so, or when a
deadline passed unanswered (then it is killed: its children give up before our deadline, so it hangs). The requests
of an ended life are asked once more in the next.

No descriptor is lost: whatever arrives is either handed to a caller who is still there, or closed. asyncio's streams
drop SCM_RIGHTS, so the socket is read with recvmsg(2) from the loop's reader callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from netd.errors import AgentUnavailable, NamespaceUnavailable, NetdError, TapUnavailable
from netd.netns.channel import PROTOCOL, receive, send
from netd.netns.plan import OpenTap, TapPlan

DEADLINE = 5.0  # seconds for one request, a restart of the agent included
START_SECONDS = 30.0  # an agent not ready by then never will be; on a cold disk the first imports take their time
STOP_SECONDS = 1.0  # how long the agent may take to see that its socket closed
BATCH = 64  # messages read per turn of the loop

# What the service manager tells the daemon is not for its child.
PRIVATE_ENVIRONMENT = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")

logger = logging.getLogger(__name__)

_ERRORS: dict[str, type[NetdError]] = {e.code: e for e in (NamespaceUnavailable, TapUnavailable, AgentUnavailable)}


class _Ended(Exception):
    """This life of the agent is over; the request may be asked in the next."""


class Agent:
    """Opens TAP devices in network namespaces through a process that may enter them. Belongs to one event loop."""

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
        try:
            held = os.dup(netns_fd)  # ours for the second try, whatever becomes of the caller's
        except OSError as e:
            raise NamespaceUnavailable(f"the namespace's descriptor is none: {e.strerror}") from e
        life: _Life | None = None
        try:
            async with asyncio.timeout(self._deadline):
                try:
                    life = await self._living()
                    return await life.ask(held, plan)
                except _Ended:
                    life = await self._living()
                    return await life.ask(held, plan)
        except TimeoutError:
            if life is not None:
                life.end("did not answer in time")
            raise AgentUnavailable(f"the namespace agent did not answer within {self._deadline:g} s") from None
        except _Ended as e:
            raise AgentUnavailable(f"the namespace agent ended twice: {e}", "see the daemon's log") from e
        finally:
            os.close(held)

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
        self._pending: dict[int, asyncio.Future[OpenTap]] = {}
        self._writable: asyncio.Future[None] | None = None
        self._last = 0
        self._overdue = self._loop.call_later(START_SECONDS, self.end, "did not start")
        self._loop.add_reader(self._channel.fileno(), self._receive)
        self._loop.add_reader(self._pidfd, self._reap)

    async def ready(self) -> None:
        """Waits until the agent can serve. Raises _Ended."""
        await asyncio.shield(self._ready)

    async def ask(self, netns_fd: int, plan: TapPlan) -> OpenTap:
        """One request and its answer. Raises _Ended and what the agent answered."""
        self._last += 1
        request = self._last
        answer: asyncio.Future[OpenTap] = self._loop.create_future()
        self._pending[request] = answer
        try:
            await self._send(json.dumps({"id": request, "plan": asdict(plan)}).encode(), netns_fd)
            return await answer
        except BaseException:  # cancelled, or timed out, perhaps in the very turn in which the answer came
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                os.close(answer.result().fd)
            raise
        finally:
            del self._pending[request]

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

    async def _send(self, message: bytes, fd: int) -> None:
        while not self.ended:
            try:
                send(self._channel, message, fd)
                return
            except BlockingIOError:  # the agent's queue is full
                if self._writable is None or self._writable.done():
                    self._writable = self._loop.create_future()
                    self._loop.add_writer(self._channel.fileno(), self._wake, self._writable)
                await asyncio.shield(self._writable)
            except (BrokenPipeError, ConnectionResetError):
                self.end("closed its socket")
            except OSError as e:  # ETOOMANYREFS, EBADF, …: of this request, not of the agent
                raise AgentUnavailable(f"the namespace cannot be handed over: {e.strerror}") from e
        raise _Ended("is gone")

    def _wake(self, writable: asyncio.Future[None]) -> None:
        self._loop.remove_writer(self._channel.fileno())
        if not writable.done():
            writable.set_result(None)

    def _receive(self) -> None:
        for _ in range(BATCH):
            try:
                data, fds = receive(self._channel)
            except BlockingIOError:
                return
            except OSError as e:
                return self.end(f"broke its socket: {e.strerror}")
            try:
                if not data:
                    return self.end("closed its socket")
                self._answer(json.loads(data), fds)
            except (KeyError, TypeError, ValueError) as e:
                return self.end(f"speaks another language: {e!r}")
            finally:
                for unclaimed in fds:
                    os.close(unclaimed)

    def _answer(self, reply: dict[str, Any], fds: list[int]) -> None:
        """Settles one request; takes the fd that it passes on out of ``fds``."""
        if "agent" in reply:
            if reply["agent"] != PROTOCOL:
                raise ValueError(f"protocol {reply['agent']}, not {PROTOCOL}")
            self._overdue.cancel()
            if not self._ready.done():
                self._ready.set_result(None)
            return
        answer = self._pending.get(reply["id"])
        if answer is None or answer.done():
            return  # its caller has gone
        if "error" in reply:
            answer.set_exception(_ERRORS[reply["error"]](reply["message"], reply["hint"]))
            answer.exception()  # seen: its caller may be cancelled before it looks
        elif not fds:  # MSG_CTRUNC: the kernel had no room for it in our table
            answer.set_exception(TapUnavailable("no free file descriptor for the TAP", "raise LimitNOFILE"))
            answer.exception()
        else:
            tap = OpenTap(fds[0], reply["mac"], reply["vnet_hdr"], reply["offload"], reply["uso"], reply["address6"])
            if reply["no_ipv6"]:
                logger.warning("a namespace goes without IPv6: %s", reply["no_ipv6"])
            answer.set_result(tap)
            del fds[0]

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
