"""The API's server: one Unix socket, the owner's uid only, every wait bounded.

A connection is accepted here, not by aiohttp: its peer is looked at (SO_PEERCRED, unix(7)) before a byte is read, the
number of connections has a bound, and each carries one timer. The timer gives a request ``REQUEST_TIMEOUT`` to be
answered and a connection ``SILENT_TIMEOUT`` to send the first; a client that stalls loses its connection, nobody waits.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from netd.api.errors import MEDIA_TYPE, RequestRefused, problem
from netd.api.models import Problem
from netd.api.routes import API_VERSION, MAX_BODY, ROUTES, Route
from netd.errors import NetdError, ShuttingDown

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

    from netd.daemon import Daemon

log = logging.getLogger(__name__)

SOCKET_NAME = "api.sock"
BACKLOG = 128
MAX_CONNECTIONS = 256
SILENT_TIMEOUT = 15.0  # seconds a new connection has for its first request's headers
REQUEST_TIMEOUT = 60.0  # seconds from one request's headers to the next one's, answer and idling included
KEEPALIVE = 30.0
STOP_TIMEOUT = 3.0  # seconds that requests in flight get when the server stops
ACCEPT_PAUSE = 1.0  # seconds without accept when descriptors have run out
ACCEPT_BATCH = 32


class ApiServer:
    """REST on ``api.sock`` in the daemon's runtime directory, or on a listener that the service manager made."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._stopping = False
        self._app = application(daemon, self._is_stopping)
        self._runner: web.AppRunner | None = None
        self._listener: socket.socket | None = None
        self._made: tuple[Path, os.stat_result] | None = None
        self._open: set[Connection] = set()
        self._adopting: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None

    async def start(self, listener: socket.socket | None) -> None:
        """Listen. ``listener`` becomes ours. Errors: NetdError when another daemon answers on the socket; OSError."""
        if listener is None:
            path = Path(self._daemon.settings.runtime_dir) / SOCKET_NAME
            listener = listen(path)
            self._made = path, os.stat(path)
        listener.setblocking(False)
        self._listener = listener
        self._runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=STOP_TIMEOUT)
        await self._runner.setup()
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    async def stop(self) -> None:
        """Take no more requests, let those in flight end within ``STOP_TIMEOUT``, close everything. Idempotent."""
        self._stopping = True
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        for task in list(self._adopting):
            task.cancel()
        if self._adopting:
            await asyncio.wait(self._adopting)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._made is not None:
            path, made = self._made
            self._made = None
            try:
                if os.path.samestat(os.stat(path), made):  # else someone else's by now
                    path.unlink()
            except FileNotFoundError:
                pass

    def _is_stopping(self) -> bool:
        return self._stopping

    def _accept(self) -> None:
        listener, runner = self._listener, self._runner
        if listener is None or runner is None or runner.server is None:
            return
        for _ in range(ACCEPT_BATCH):
            try:
                conn, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                if exc.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                log.warning("api: cannot accept: %s", exc.strerror)
                self._pause_accepting(listener)
                return
            conn.setblocking(False)
            if peer_uid(conn) != os.geteuid():
                _dismiss(conn, RequestRefused(403, "forbidden", "this socket is for its owner's uid only"))
            elif len(self._open) >= MAX_CONNECTIONS:
                _dismiss(conn, RequestRefused(503, "too_many_connections", f"{MAX_CONNECTIONS} connections are open"))
            else:
                loop = asyncio.get_running_loop()
                connection = Connection(runner.server, loop, self._open.discard)
                self._open.add(connection)
                task = loop.create_task(self._adopt(conn, connection))
                self._adopting.add(task)
                task.add_done_callback(self._adopting.discard)

    def _pause_accepting(self, listener: socket.socket) -> None:
        # The listener stays readable: without a pause the loop would do nothing but fail.
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener.fileno())
        self._pause = loop.call_later(ACCEPT_PAUSE, lambda: loop.add_reader(listener.fileno(), self._accept))

    async def _adopt(self, conn: socket.socket, connection: Connection) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, conn)
        except BaseException as exc:
            conn.close()
            self._open.discard(connection)
            if not isinstance(exc, OSError):  # that is a client gone before we began
                raise


class Connection(web.RequestHandler):
    """aiohttp's connection, with a deadline and with problem documents for what never reaches a handler."""

    __slots__ = ("_deadline", "_lost")

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop, lost: Callable[[Connection], None]) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=KEEPALIVE,
            tcp_keepalive=False,
            lingering_time=1.0,
            auto_decompress=False,
        )
        self._deadline: asyncio.TimerHandle | None = None
        self._lost = lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.extend(SILENT_TIMEOUT)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._lost(self)
        super().connection_lost(exc)

    def extend(self, seconds: float) -> None:
        """The connection is aborted unless it is extended again within ``seconds``."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        transport = self.transport
        if transport is not None:
            self._deadline = self._loop.call_later(seconds, transport.abort)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if status < 500:
            error: BaseException = RequestRefused(400, "bad_request", "this is not an HTTP request we understand")
        else:
            log.error("api: %s failed", request.rel_url, exc_info=exc)
            error = exc or RuntimeError()
        response = refusal(error, "")
        response.force_close()
        return response


def application(daemon: Daemon, stopping: Callable[[], bool]) -> web.Application:
    """The routes as an aiohttp application. ``stopping()`` true turns every request away with 503."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        if isinstance(request.protocol, Connection):
            request.protocol.extend(REQUEST_TIMEOUT)
        try:
            if stopping():
                raise ShuttingDown("netd is stopping")
            response = await handler(request)
        except (NetdError, RequestRefused) as exc:
            response = refusal(exc, request.path)
        except web.HTTPException as exc:
            response = refusal(_of_http(exc, request), request.path)
            if "Allow" in exc.headers:
                response.headers["Allow"] = exc.headers["Allow"]
        except Exception as exc:
            log.exception("api: %s %s failed", request.method, request.path)
            response = refusal(exc, request.path)
        if response.status == 503:
            response.headers["Retry-After"] = "1"
        if response.status in (408, 413):
            response.force_close()
        response.headers["Netd-Api-Version"] = API_VERSION
        response.headers["Server"] = "netd"
        return response

    app = web.Application(middlewares=[answer], client_max_size=MAX_BODY)
    for route in ROUTES:
        act = _bound(route, daemon)
        if route.method == "GET":
            app.router.add_get(route.path, act)  # and HEAD
        else:
            app.router.add_route(route.method, route.path, act)
    return app


def _bound(route: Route, daemon: Daemon) -> Handler:
    known = {parameter.name for parameter in route.query}

    async def act(request: web.Request) -> web.StreamResponse:
        for name in request.query:
            if name not in known:
                hint = "it knows " + ", ".join(sorted(known)) if known else ""
                raise RequestRefused(400, "bad_query", f"unknown query parameter {name!r}", hint)
        return await route.act(daemon, request)

    return act


def _of_http(exc: web.HTTPException, request: web.Request) -> RequestRefused:
    match exc.status:
        case 404:
            return RequestRefused(404, "no_such_route", f"there is no {request.path}", "see GET /v1/openapi.json")
        case 405:
            allowed = exc.headers.get("Allow", "")
            return RequestRefused(405, "method_not_allowed", f"{request.path} knows {allowed}, not {request.method}")
        case 413:
            return RequestRefused(413, "body_too_large", f"the body is larger than {MAX_BODY} bytes")
    return RequestRefused(exc.status, "bad_request", exc.reason)


def refusal(error: BaseException, instance: str) -> web.Response:
    """``error`` as a problem response."""
    document = problem(error, instance)
    return web.Response(body=_encoded(document), status=document.status, content_type=MEDIA_TYPE)


def _encoded(document: Problem) -> bytes:
    return document.model_dump_json(exclude_none=True).encode()


def peer_uid(conn: socket.socket) -> int:
    """The uid of the process at the other end when it connected (struct ucred, unix(7))."""
    _, uid, _ = struct.unpack("iII", conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def _dismiss(conn: socket.socket, error: RequestRefused) -> None:
    body = _encoded(problem(error, ""))
    head = f"HTTP/1.1 {error.status} {'Forbidden' if error.status == 403 else 'Service Unavailable'}\r\n"
    fields = f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    try:
        conn.send(head.encode() + fields.encode() + body)
    except OSError:
        pass  # it does not want to hear it
    conn.close()


def listen(path: Path) -> socket.socket:
    """A listening socket at ``path``, mode 0600. A stale file is replaced; NetdError if a daemon answers on it."""
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)  # between bind and chmod the socket would be open to all
    try:
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _clear(path: Path) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise NetdError(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        refused = probe.connect_ex(str(path))
    if refused in (0, errno.EAGAIN):  # EAGAIN: its backlog is full
        raise NetdError(f"another netd answers on {path}", "stop it first, or give another --runtime-dir")
    path.unlink(missing_ok=True)
