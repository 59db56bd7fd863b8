"""``netd serve``: the daemon as a process. Sockets, signals, service manager; everything else is behind them."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import struct
from typing import TYPE_CHECKING

import uvloop

from netd.attach.server import AttachServer
from netd.daemon import Daemon
from netd.sdnotify import Notifier, listen_fds
from netd.settings import Settings

if TYPE_CHECKING:
    from netd.api.app import ApiServer

logger = logging.getLogger(__name__)

_SCHED_SETATTR = 314
_SLICE = 100_000  # ns
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_HEAP_KEPT = 32 << 20  # bytes
_IN_HEAP = 1 << 20  # bytes: what is read from a host's socket at once is less


def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; the exit status."""
    level = getattr(logging, settings.log_level.upper())
    logging.basicConfig(level=level, format="netd: %(message)s")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0o077)
    _keep_heap()
    _short_slice()
    return uvloop.run(_serve(settings))


def _keep_heap() -> None:
    """Do not give freed memory back after every 128 kB, nor map what is larger by itself: chunks on their way to a
    guest come and go at 10 Gbit/s, and faulting their pages in anew costs a third of that (mallopt(3); glibc only,
    elsewhere nothing happens)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _HEAP_KEPT)
        mallopt(_M_MMAP_THRESHOLD, _IN_HEAP)


def _short_slice() -> None:
    """Ask the scheduler for turns of 0.1 ms instead of 3: not for a larger share, for a sooner one (sched_setattr(2),
    Linux 6.12 for SCHED_OTHER; elsewhere it is refused or means nothing)."""
    syscall = getattr(ctypes.CDLL(None), "syscall", None)
    attributes = struct.pack("=IIQiIQQQ", 48, 0, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, _SLICE, 0, 0)
    if syscall is not None and os.uname().machine == "x86_64":
        syscall(_SCHED_SETATTR, 0, attributes, 0)


async def _serve(settings: Settings) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    notifier = Notifier()
    listeners: dict[str, socket.socket] = {}
    stored: list[tuple[str, int]] = []
    for name, fd in listen_fds():
        if name == "listen":  # netd.socket: all sockets of a unit have one name, their types tell them apart
            listener = socket.socket(fileno=fd)
            listener.setblocking(False)
            listeners["attach" if listener.type == socket.SOCK_SEQPACKET else "api"] = listener
        else:
            stored.append((name, fd))
    settings.runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    daemon = Daemon(settings, notifier)
    await daemon.start(stored)
    attach = AttachServer(daemon)
    api: ApiServer | None = None
    try:
        await attach.start(listeners.get("attach"))
        api = (await asyncio.to_thread(_api_server))(daemon)
        await api.start(listeners.get("api"))
        daemon.announce()
        if not daemon.networks:  # which end some day
            gc.freeze()  # what has been loaded stays: to look at all of it again and again stops the traffic for 40 ms
        notifier.send("READY=1", f"STATUS={len(daemon.networks)} networks")
        watchdog = asyncio.create_task(_watchdog(notifier))
        logger.info("ready on %s", settings.runtime_dir)
        await stop.wait()
        notifier.send("STOPPING=1")
        watchdog.cancel()
    finally:
        if api is not None:
            await api.stop()
        await attach.stop()
        await daemon.stop()
    return 0


def _api_server() -> type[ApiServer]:
    """aiohttp takes a third of the start to load: restored networks and waiting shims do not wait for that."""
    from netd.api.app import ApiServer

    return ApiServer


async def _watchdog(notifier: Notifier) -> None:
    """Say that the loop turns, twice as often as asked (sd_watchdog_enabled(3))."""
    while notifier.watchdog_seconds:
        try:
            notifier.send("WATCHDOG=1")
        except OSError as e:
            logger.warning("the service manager did not take a watchdog message: %s", e)
        await asyncio.sleep(notifier.watchdog_seconds / 2)
