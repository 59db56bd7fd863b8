"""One HTTP exchange over the Unix socket, with nothing of netd in it."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def call(socket: Path, method: str, target: str, body: Any = None, raw: bytes | None = None) -> Answer:
    payload = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
    head = f"{method} {target} HTTP/1.1\r\nHost: netd\r\nConnection: close\r\nContent-Length: {len(payload)}\r\n\r\n"
    return parse(await exchange(socket, head.encode() + payload))


async def exchange(socket: Path, sent: bytes) -> bytes:
    """Everything the server says until it closes."""
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        writer.write(sent)
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()
        await writer.wait_closed()


def parse(raw: bytes) -> Answer:
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(first.split()[1]), headers, body)


async def open_fds() -> int:
    """Descriptors of this process, once both ends of the connections that ended are closed."""
    for _ in range(5):  # transports close their sockets some turns of the loop after they were told to
        await asyncio.sleep(0)
    return len(os.listdir("/proc/self/fd"))
