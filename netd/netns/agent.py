"""The agent: a process of its own that enters namespaces, so that the daemon never has to.

``setns(2)`` into a user namespace needs a single-threaded process and cannot be undone. The daemon therefore keeps
this small process. What is to be done in a namespace is done by a child: it asks the network namespace for its owning
user namespace (ioctl_ns(2)), enters both, does its work there, sends what it made back, and is gone. One child stands
ready before it is needed, since to fork and to copy the pages it will touch takes longer than its work. One that made
bare sockets stays for a second: where many are wanted, more of them are. What is asked of the host's namespace, which
the agent never leaves, the agent answers itself.

One SEQPACKET socket, made by the daemon and passed by number, carries one JSON object per message (``channel``). A
request names an operation, an answer carries its result under the same name:

    agent -> daemon   {"agent": 4}                                       once, when it can serve: the protocol
    daemon -> agent   {"id": 7, "op": "tap", "plan": {...}} + the namespace's fd
    agent -> daemon   {"id": 7, "tap": {"mac": ..., "vnet_hdr": ..., "offload": ..., "uso": ..., "address6": ...,
                       "no_ipv6": ..., "left_out": [...]}} + the TAP's fd
    daemon -> agent   {"id": 8, "op": "sockets", "plans": [{...}, ...]} + the namespace's fd
    agent -> daemon   {"id": 8, "sockets": [null or why there is none, ...]} + an fd for each null, in this order
    daemon -> agent   {"id": 9, "op": "view"}
    agent -> daemon   {"id": 9, "view": {"interfaces": [[...], ...], "routes": [[...], ...], ...}}
    agent -> daemon   {"id": 7, "error": CODE, "message": ..., "hint": ...}         to any; code: of netd.errors

It ends when the socket closes. It ignores the terminal's signals; a child that crashes or hangs costs one request.

Sources: namespaces(7), user_namespaces(7), ioctl_ns(2), unix(7).
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any, NoReturn

from netd.errors import AgentUnavailable, NetdError
from netd.netns.channel import PROTOCOL, receive, send
from netd.netns.configuration import Configured, configure, prepare, rehearse
from netd.netns.entry import enter, libc
from netd.netns.plan import SocketPlan, TapPlan
from netd.netns.sockets import open_sockets
from netd.netns.tun import identity, offer_uso, open_tap
from netd.netns.view import read

CHILDREN_MAX = 16  # requests at work at once; further ones wait in the socket
CHILD_SECONDS = 4.0  # a child's life, shorter than the daemon's patience
STAY = 1.0  # seconds without a request, for a child that may get another one
STAYING_MAX = 8  # of those
READY_AFTER = 150  # ms without a request: whoever has just got a network is busy with what comes next
PR_SET_DUMPABLE, PR_SET_NAME = 4, 15
DONE = b"."  # a child has answered, and stays

Result = tuple[Any, Sequence[int]]  # what goes into the answer, and the fds that go with it

# --- in the child ----------------------------------------------------------------------------------------------


def tap(plan: TapPlan) -> Result:
    """Opens and configures a TAP. Raises TapUnavailable."""
    fd, vnet_hdr, offload = open_tap(plan)
    done = Configured()
    try:
        uso = plan.uso and offload and offer_uso(fd)
        name, persistent, mac = identity(fd)
        if plan.configure:
            done = configure(plan, name, persistent, mac)
        elif plan.lo:
            prepare(plan, name)
        _, _, mac = identity(fd)
    except BaseException:
        os.close(fd)  # so that the TAP is gone before the caller hears of it
        raise
    features = {"vnet_hdr": vnet_hdr, "offload": offload, "uso": uso}
    return {"mac": mac, **features, **done._asdict()}, [fd]


def child(
    channel: socket.socket, message: dict[str, Any], netns_fd: int, requests: socket.socket | None = None
) -> NoReturn:
    """The forked child. Its status is 0 when it has answered. ``requests``: where more of them come from."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, CHILD_SECONDS)
        libc.prctl(PR_SET_NAME, b"netd-agent", 0, 0, 0)
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # in there, root of the container could otherwise trace us
        inside = False
        while True:
            fds: Sequence[int] = ()
            try:
                work = work_of(message)
                if not inside:
                    enter(netns_fd)
                    inside = True
                result, fds = work()
            except NetdError as e:
                refuse(channel, message["id"], e)
            else:
                answer(channel, message["id"], message["op"], result, fds)
            if requests is None or not inside:
                break
            for fd in fds:
                os.close(fd)
            signal.setitimer(signal.ITIMER_REAL, 0)
            try:
                requests.send(DONE)
            except BrokenPipeError:
                break
            following, _ = receive(requests)
            if following is None:
                break
            signal.setitimer(signal.ITIMER_REAL, CHILD_SECONDS)
            message = following
        status = 0
    except (BrokenPipeError, ConnectionResetError):
        pass  # the daemon is gone; so is what was made
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def stand_by(channel: socket.socket, agents: socket.socket, requests: socket.socket) -> NoReturn:
    """The child that stands ready: it waits for one request from the agent, or for the agent's end."""
    try:
        libc.prctl(PR_SET_NAME, b"netd-ready", 0, 0, 0)
        agents.close()  # or it would not see that end
        with suppress(OSError, NetdError):
            rehearse()
        message, fds = receive(requests)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    if message is None:
        os._exit(0)
    if not fds:  # no room for them in our table
        os._exit(1)
    child(channel, message, fds[0], requests if may_stay(message) else None)


# --- in the agent ----------------------------------------------------------------------------------------------


class Child:
    """One that has a request, or (``request`` None) waits for another one from ``requests`` until ``until``."""

    __slots__ = ("netns", "pid", "request", "requests", "until")

    def __init__(self, pid: int, request: int, netns: int = 0, requests: socket.socket | None = None) -> None:
        self.pid = pid
        self.request: int | None = request
        self.netns = netns  # the inode
        self.requests = requests
        self.until = 0.0


def may_stay(message: dict[str, Any]) -> bool:
    """Whether more requests like this one may come at once."""
    plans = message.get("plans")
    return bool(plans) and all(plan.get("kind") == "connect" for plan in plans or ())


def answer(channel: socket.socket, request: int, op: str, result: Any, fds: Sequence[int] = ()) -> None:
    try:
        send(channel, {"id": request, op: result}, fds)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except OSError as e:  # ETOOMANYREFS: too many fds of this user are on their way
        refuse(channel, request, AgentUnavailable(f"the agent cannot hand over its answer: {e.strerror}"))


def refuse(channel: socket.socket, request: int, e: NetdError) -> None:
    send(channel, {"id": request, "error": e.code, "message": str(e), "hint": e.hint})


class Agent:
    """Serves requests until the daemon closes its end."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._poll = select.poll()
        self._children: dict[int, Child] = {}  # by pidfd
        self._staying: dict[int, int] = {}  # pidfd of such a child, by its ``requests``' descriptor
        self._ready: tuple[int, int, socket.socket] | None = None  # pidfd, pid, and where its request goes
        self._lost = False  # one that stood ready has died, or none could be had: no other before the next request

    def run(self) -> None:
        """Until the daemon is gone. Raises OSError."""
        self._poll.register(self._channel, select.POLLIN)
        send(self._channel, {"agent": PROTOCOL})
        self._have_ready()
        while True:
            wanted = self._ready is None and len(self._children) == len(self._staying) and not self._lost
            events = self._poll.poll(READY_AFTER if wanted else int(STAY * 1000) if self._staying else None)
            if not events and wanted:
                self._have_ready()
            asked = False
            for fd, _ in events:
                if fd in self._children:
                    self._bury(fd)
                elif fd in self._staying:
                    self._hear(fd)
                elif self._ready is not None and fd == self._ready[0]:
                    self._dismiss()
                elif fd == self._channel.fileno():
                    asked = True  # last: what is opened then may have a number that is among these
            if asked and not self._serve():
                return
            self._let_go()

    def _serve(self) -> bool:
        """One request; False: the daemon is gone."""
        message, fds = receive(self._channel)
        if message is None:
            return False
        try:
            self._accept(message, fds)
        except NetdError as e:
            refuse(self._channel, message["id"], e)
        finally:
            for received in fds:
                os.close(received)
        return True

    def _accept(self, message: dict[str, Any], fds: list[int]) -> None:
        """Answers one request, or has a child do it. Raises AgentUnavailable."""
        if "spilled" in message:
            raise AgentUnavailable("no free file descriptor for the request", "raise LimitNOFILE")
        if message.get("op") == "view":
            try:
                return answer(self._channel, message["id"], "view", read())
            except OSError as e:
                raise AgentUnavailable(f"the host's network cannot be read: {e.strerror}") from e
        if len(fds) != 1:
            raise AgentUnavailable(f"a request carries one namespace, not {len(fds)}")
        netns = os.fstat(fds[0]).st_ino if may_stay(message) else 0
        if netns and self._give_again(message, netns):
            return
        given = self._give(message, fds, netns)
        if given is None:
            pidfd, pid = self._fork(child, message, fds[0])
            given = pidfd, Child(pid, message["id"])
        self._children[given[0]] = given[1]
        if len(self._children) == CHILDREN_MAX:
            self._poll.unregister(self._channel)

    def _fork(self, begin: Callable[..., NoReturn], *arguments: Any) -> tuple[int, int]:
        """A child that does this: its pidfd, which is polled from now on, and its pid. Raises AgentUnavailable."""
        try:
            pid = os.fork()
        except OSError as e:
            raise AgentUnavailable(f"no process for the namespace: {e.strerror}") from e
        if pid == 0:
            for other in self._children.values():
                if other.requests is not None:
                    other.requests.close()  # or it would not see its end
            begin(self._channel, *arguments)
        pidfd = os.pidfd_open(pid)
        self._poll.register(pidfd, select.POLLIN)
        return pidfd, pid

    def _bury(self, pidfd: int) -> None:
        buried = self._children.pop(pidfd)
        self._lost = False
        self._dismiss_staying(buried)
        code = self._reap(pidfd, buried.pid)
        if len(self._children) == CHILDREN_MAX - 1:
            self._poll.register(self._channel, select.POLLIN)
        # It has not answered, or died after it did: then nobody waits for this any more.
        if code != 0 and buried.request is not None:
            why = f"took longer than {CHILD_SECONDS} s" if code == -signal.SIGALRM else f"died (status {code})"
            refuse(self._channel, buried.request, AgentUnavailable(f"the process in the namespace {why}"))

    def _reap(self, pidfd: int, pid: int) -> int:
        self._poll.unregister(pidfd)
        os.close(pidfd)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    # -- the child that stands ready ----------------------------------------------------------------------------

    def _have_ready(self) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            self._lost = True  # the next request has a child made for it
            return
        with theirs:
            try:
                pidfd, pid = self._fork(stand_by, ours, theirs)
            except (AgentUnavailable, OSError):
                ours.close()
                self._lost = True
                return
        self._ready = pidfd, pid, ours

    def _give(self, message: dict[str, Any], fds: list[int], netns: int) -> tuple[int, Child] | None:
        """Gives the request to the child that stands ready, if there is one and it takes it. ``netns``: it may stay."""
        if self._ready is None:
            return None
        pidfd, pid, requests = self._ready
        try:
            send(requests, message, fds)
        except OSError:
            return None  # it has died; its pidfd says so as well
        self._ready = None
        if netns and len(self._staying) < STAYING_MAX:
            self._poll.register(requests, select.POLLIN)
            self._staying[requests.fileno()] = pidfd
            return pidfd, Child(pid, message["id"], netns, requests)
        requests.close()  # which ends it when it has answered
        return pidfd, Child(pid, message["id"])

    # -- children that stay -------------------------------------------------------------------------------------

    def _give_again(self, message: dict[str, Any], netns: int) -> bool:
        """Gives the request to one that is in that namespace already and waits."""
        for pidfd in self._staying.values():
            staying = self._children[pidfd]
            if staying.netns == netns and staying.request is None and staying.requests is not None:
                try:
                    send(staying.requests, message)
                except OSError:
                    continue  # it has died; its pidfd says so as well
                staying.request = message["id"]
                return True
        return False

    def _hear(self, fd: int) -> None:
        """It has answered, or ended."""
        staying = self._children[self._staying[fd]]
        assert staying.requests is not None
        said = b""
        with suppress(ConnectionResetError):
            said = staying.requests.recv(len(DONE))
        if said == DONE:
            staying.request, staying.until = None, monotonic() + STAY
        else:
            self._dismiss_staying(staying)

    def _let_go(self) -> None:
        """Of those that have waited long enough."""
        now = monotonic()
        for pidfd in list(self._staying.values()):
            staying = self._children[pidfd]
            if staying.request is None and staying.until <= now:
                self._dismiss_staying(staying)

    def _dismiss_staying(self, staying: Child) -> None:
        """No more requests: it ends."""
        if staying.requests is not None:
            self._poll.unregister(staying.requests)
            del self._staying[staying.requests.fileno()]
            staying.requests.close()
            staying.requests = None

    def _dismiss(self) -> None:
        """It has ended before its time."""
        assert self._ready is not None
        pidfd, pid, requests = self._ready
        self._ready, self._lost = None, True
        requests.close()
        self._reap(pidfd, pid)


def work_of(message: dict[str, Any]) -> Callable[[], Result]:
    """What a child is to do in the namespace. Raises AgentUnavailable."""
    op = message.get("op")
    try:
        if op == "tap":
            plan = TapPlan(**message["plan"])
            return lambda: tap(plan)
        if op == "sockets":
            plans = [SocketPlan(**fields) for fields in message["plans"]]
            return lambda: open_sockets(plans)
    except (KeyError, TypeError) as e:  # the package was replaced under a running daemon
        raise AgentUnavailable(f"the agent is of another version: {e}", "restart netd") from e
    raise AgentUnavailable(f"the agent is of another version: it knows nothing of {op!r}", "restart netd")


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(ignored, signal.SIG_IGN)
    libc.prctl(PR_SET_NAME, b"netd-agent", 0, 0, 0)
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    gc.collect()
    gc.freeze()  # or a collection in a child would touch, and so copy, every page
    try:
        Agent(channel).run()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the daemon went away while it was answered


if __name__ == "__main__":
    main()
