"""Stands in for the daemon under systemd/netd.service: sockets, notification, fd store and the real agent; no network.

A line (or message) on either socket is a command: ``state``, or ``tap PID`` to open tap0 in the namespace of PID and
keep it in the fd store. The answer is one line of JSON.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket

from netd.errors import NetdError
from netd.netns.plan import TapPlan
from netd.netns.spawn import Agent


def notify(message: str, *fds: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        door.sendmsg([message.encode()], rights)


def inherited() -> tuple[list[socket.socket], list[str]]:
    """(the listening sockets, the names of what was in the fd store)"""
    assert int(os.environ["LISTEN_PID"]) == os.getpid()
    names = os.environ["LISTEN_FDNAMES"].split(":")
    listeners = [socket.socket(fileno=fd) for fd, name in enumerate(names, 3) if name == "listen"]
    return listeners, [name for name in names if name != "listen"]


async def main() -> None:
    loop = asyncio.get_running_loop()
    listeners, stored = inherited()
    agent = Agent()
    await agent.start()

    async def do(command: list[str]) -> object:
        if command[0] == "tap":
            netns = os.open(f"/proc/{command[1]}/ns/net", os.O_RDONLY)
            try:
                tap = await agent.open_tap(netns, TapPlan("tap0", 1500, address="10.0.2.100/24", gateway="10.0.2.2"))
            except NetdError as e:
                return {"error": e.code, "message": str(e)}
            finally:
                os.close(netns)
            notify("FDSTORE=1\nFDNAME=tap0", tap.fd)
            os.close(tap.fd)
            return {"offload": tap.offload}
        listening = {os.path.basename(s.getsockname()): s.type.name for s in listeners}
        return {"pid": os.getpid(), "agent": agent.pid, "stored": stored, "listeners": listening}

    async def serve(listener: socket.socket) -> None:
        listener.setblocking(False)
        while True:
            peer, _ = await loop.sock_accept(listener)
            with peer:
                command = (await loop.sock_recv(peer, 1000)).decode().split()
                await loop.sock_sendall(peer, json.dumps(await do(command)).encode() + b"\n")

    async def watchdog() -> None:
        while True:
            notify("WATCHDOG=1")
            await asyncio.sleep(int(os.environ["WATCHDOG_USEC"]) / 3e6)

    serving = [asyncio.create_task(serve(listener)) for listener in listeners]
    notify("READY=1\nSTATUS=standing in")
    await asyncio.gather(watchdog(), *serving)


asyncio.run(main())
