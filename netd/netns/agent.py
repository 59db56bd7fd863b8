"""The agent: a process of its own that enters namespaces, so that the daemon never has to.

``setns(2)`` into a user namespace needs a single-threaded process and cannot be undone. The daemon therefore keeps
this small process. What is to be done in a namespace is done by a child: it asks the network namespace for its owning
user namespace (ioctl_ns(2)), enters both, does its work there, sends what it made back, and is gone. What is asked of
the host's namespace, which the agent never leaves, the agent answers itself.

One SEQPACKET socket, made by the daemon and passed by number, carries one JSON object per message (``channel``). A
request names an operation, an answer carries its result under the same name:

    agent -> daemon   {"agent": 3}                                       once, when it can serve: the protocol
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
from typing import Any, NoReturn

from netd.errors import AgentUnavailable, NetdError
from netd.netns import view
from netd.netns.channel import PROTOCOL, receive, send
from netd.netns.configuration import Configured, configure, prepare
from netd.netns.entry import enter, libc
from netd.netns.plan import SocketPlan, TapPlan
from netd.netns.sockets import open_sockets
from netd.netns.tun import identity, offer_uso, open_tap

CHILDREN_MAX = 16  # requests at work at once; further ones wait in the socket
CHILD_SECONDS = 4.0  # a child's life, shorter than the daemon's patience
PR_SET_DUMPABLE, PR_SET_NAME = 4, 15

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


def child(channel: socket.socket, request: int, op: str, netns_fd: int, work: Callable[[], Result]) -> NoReturn:
    """The forked child. Its status is 0 when it has answered."""
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, CHILD_SECONDS)
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # in there, root of the container could otherwise trace us
        try:
            enter(netns_fd)
            result, fds = work()
        except NetdError as e:
            refuse(channel, request, e)
        else:
            answer(channel, request, op, result, fds)
        status = 0
    except (BrokenPipeError, ConnectionResetError):
        pass  # the daemon is gone; so is what was made
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


# --- in the agent ----------------------------------------------------------------------------------------------


def answer(channel: socket.socket, request: int, op: str, result: Any, fds: Sequence[int] = ()) -> None:
    try:
        send(channel, {"id": request, op: result}, fds)
    except (BrokenPipeError, ConnectionResetError):
        raise
    except OSError as e:  # ETOOMANYREFS: too many fds of this user are on their way
        refuse(channel, request, AgentUnavailable(f"the agent cannot hand over its answer: {e.strerror}"))


def refuse(channel: socket.socket, request: int, e: NetdError) -> None:
    send(channel, {"id": request, "error": e.code, "message": str(e), "hint": e.hint})


def run(channel: socket.socket) -> None:
    """Serves requests until the daemon closes its end."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    children: dict[int, tuple[int, int]] = {}  # pidfd -> pid, request
    send(channel, {"agent": PROTOCOL})
    while True:
        for fd, _ in poll.poll():
            if fd in children:
                poll.unregister(fd)
                os.close(fd)
                pid, request = children.pop(fd)
                if len(children) == CHILDREN_MAX - 1:
                    poll.register(channel, select.POLLIN)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if code != 0:  # it has not answered, or died after it did: then nobody waits for this any more
                    why = f"took longer than {CHILD_SECONDS} s" if code == -signal.SIGALRM else f"died (status {code})"
                    refuse(channel, request, AgentUnavailable(f"the process in the namespace {why}"))
                continue
            message, fds = receive(channel)
            if message is None:
                return
            try:
                accept(channel, message, fds, poll, children)
            except NetdError as e:
                refuse(channel, message["id"], e)
            finally:
                for received in fds:
                    os.close(received)


def accept(
    channel: socket.socket,
    message: dict[str, Any],
    fds: list[int],
    poll: select.poll,
    children: dict[int, tuple[int, int]],
) -> None:
    """Answers one request, or forks a child that will. Raises AgentUnavailable."""
    request = message["id"]
    if "spilled" in message:
        raise AgentUnavailable("no free file descriptor for the request", "raise LimitNOFILE")
    op = message.get("op")
    if op == "view":
        return answer(channel, request, "view", host_view())
    work = work_of(message)
    if len(fds) != 1:
        raise AgentUnavailable(f"a request carries one namespace, not {len(fds)}")
    try:
        pid = os.fork()
    except OSError as e:
        raise AgentUnavailable(f"no process for the namespace: {e.strerror}") from e
    if pid == 0:
        child(channel, request, str(op), fds[0], work)
    pidfd = os.pidfd_open(pid)
    children[pidfd] = pid, request
    poll.register(pidfd, select.POLLIN)
    if len(children) == CHILDREN_MAX:
        poll.unregister(channel)


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


def host_view() -> dict[str, Any]:
    """The network of the namespace that the agent was started in. Raises AgentUnavailable."""
    try:
        return view.read()
    except OSError as e:
        raise AgentUnavailable(f"the host's network cannot be read: {e.strerror}") from e


def main() -> None:
    for ignored in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(ignored, signal.SIG_IGN)
    libc.prctl(PR_SET_NAME, b"netd-agent", 0, 0, 0)
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    gc.collect()
    gc.freeze()  # or a collection in a child would touch, and so copy, every page
    try:
        run(channel)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the daemon went away while it was answered


if __name__ == "__main__":
    main()
