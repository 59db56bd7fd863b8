"""The attach socket: accept shims of the owner, let the dialect they were called by speak, see staying shims out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from netd.attach.conversation import Conversation, ShimGone
from netd.attach.message import Exit, write
from netd.dialects.registry import dialect, farewell, residents
from netd.errors import NetdError

if TYPE_CHECKING:
    from netd.daemon import Daemon
    from netd.network import Network

log = logging.getLogger(__name__)

MAX_CONVERSATIONS = 64  # shims being served at once; the next wait in the backlog
BACKLOG = 256
_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7), SO_PEERCRED)
_OUT_OF_FDS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class AttachServer:
    """Serves ``attach.sock``. One task per shim, each step in bounded time, every descriptor closed on every path."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._residents = residents(daemon)
        self._listener: socket.socket | None = None
        self._made: Path | None = None
        self._accepting = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, listener: socket.socket | None) -> None:
        """Listen on ``listener``, which becomes ours, or on a socket made here. NetdError if a daemon has it."""
        if listener is None:
            path = self._daemon.settings.runtime_dir / "attach.sock"
            listener = _make_listener(path)
            self._made = path
        listener.setblocking(False)
        self._listener = listener
        self._daemon.observers.append(_observe)
        for resident in self._residents:
            await resident.start()
        self._accept_more(True)

    async def stop(self) -> None:
        """Stop listening, end the conversations that are not finished, let go of everything. Networks stay."""
        self._accept_more(False)
        if _observe in self._daemon.observers:
            self._daemon.observers.remove(_observe)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for resident in self._residents:
            await resident.stop()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._made is not None:
            self._made.unlink(missing_ok=True)
            self._made = None

    # --- shims that arrive ---------------------------------------------------------------------------------------

    def _accept_more(self, wanted: bool) -> None:
        if self._listener is None or wanted == self._accepting:
            return
        loop = asyncio.get_running_loop()
        if wanted:
            loop.add_reader(self._listener.fileno(), self._accept)
        else:
            loop.remove_reader(self._listener.fileno())
        self._accepting = wanted

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            if error.errno not in _OUT_OF_FDS:
                raise
            log.warning("attach: %s", error.strerror)
            self._accept_more(False)  # else the readable listener would spin
            asyncio.get_running_loop().call_later(0.1, self._resume)
            return
        task = asyncio.get_running_loop().create_task(self._converse(connection))
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._done, connection))
        self._resume()

    def _done(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        connection.close()  # here and not in the task, which may have been cancelled before it began
        self._tasks.discard(task)
        self._resume()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("attach: a conversation failed", exc_info=error)

    def _resume(self) -> None:
        self._accept_more(len(self._tasks) < MAX_CONVERSATIONS)

    async def _converse(self, connection: socket.socket) -> None:
        shim = Conversation(connection)
        try:
            hello = await shim.hello()  # also a stranger's: closing on an unread message would lose the answer
            _, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            if uid != os.getuid():
                log.warning("attach: uid %d refused", uid)
                raise NetdError(f"this daemon is of uid {os.getuid()} and serves nobody else")
            await dialect(hello.argv0)(shim, hello, self._daemon)
        except ShimGone as error:
            log.info("attach: %s", error)
        except NetdError as error:
            log.info("attach: %s", error)
            lines = f"netd: {error}\n" + (f"hint: {error.hint}\n" if error.hint else "")
            with contextlib.suppress(ShimGone):
                shim.tell(Exit(status=1, stderr=lines))
        except Exception:
            with contextlib.suppress(ShimGone):
                shim.tell(Exit(status=1, stderr="netd: an error inside the daemon; its log says more\n"))
            raise


def _observe(event: str, network: Network) -> None:
    """See a staying shim out: tell it that its network has ended, in its dialect.

    By now the network is closed, but its descriptors are not. After a restart of the daemon it works the same.
    """
    if event != "detached" or network.lifeline.kind != "shim":
        return
    connection = socket.socket(fileno=network.lifeline.fd)
    try:
        connection.setblocking(False)
        with contextlib.suppress(OSError):  # mostly it is the shim that ended first
            connection.send(write(farewell(network)))
    finally:
        connection.detach()


def _make_listener(path: Path) -> socket.socket:
    """A listening SOCK_SEQPACKET socket at ``path``, mode 0600. A file that nobody listens on is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _short(path) as address:
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                probe.setblocking(False)
                probe.connect(address)
            except FileNotFoundError:
                pass
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except BlockingIOError:  # a full backlog is somebody's
                raise NetdError(f"a netd is already running: it listens on {path}") from None
            else:
                raise NetdError(f"a netd is already running: it listens on {path}")
            finally:
                probe.close()
            mask = os.umask(0o177)
            try:
                listener.bind(address)
            finally:
                os.umask(mask)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise NetdError(f"cannot listen on {path}: {error.strerror or error}") from error
    except BaseException:
        listener.close()
        raise
    return listener


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """``path`` as an address for bind and connect, also where it is longer than sun_path (108, unix(7))."""
    if len(os.fsencode(path)) < 108:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
