"""The world beyond the test machine's eth0: one outside host that says who it sees.

    python3 -I world.py [FD]        a line is written to FD when all of it listens

=============  ==================================================================================================
53 UDP, TCP    DNS (RFC 1035): ``world``, ``*.test``, ``big.test`` too long for UDP; all else is NXDOMAIN
80 TCP         HTTP: ``/`` answers ``you are ADDRESS PORT``, ``/bytes/N`` N bytes, other paths 404
7 TCP, UDP     echo (RFC 862); TCP half-closes as the client does
37 TCP, UDP    ``ADDRESS PORT``: who the client is, seen from here
=============  ==================================================================================================

On 10.77.0.1 and fd77::1. At 10.77.0.10 port 53 takes UDP queries and never answers; at 10.77.0.9 nothing listens.
"""

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Callable, Coroutine
from typing import cast

V4, V6 = "10.77.0.1", "fd77::1"
SILENT = "10.77.0.10"


def answer(query: bytes, limit: int) -> bytes:
    """The response to a DNS query of one question; b"" for what is none. Longer than limit: truncated (TC)."""
    if len(query) < 17 or query[2] & 0x80:
        return b""
    at, labels = 12, []
    while at < len(query) and query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace").lower())
        at += query[at] + 1
    question = query[12 : at + 5]
    if len(question) < 5:
        return b""
    name, (kind,) = ".".join(labels), struct.unpack_from(">H", question, len(question) - 4)
    known = name == "world" or name.endswith(".test")
    data = (
        {1: [socket.inet_pton(socket.AF_INET, V4)], 28: [socket.inet_pton(socket.AF_INET6, V6)]}.get(kind, [])
        if known
        else []
    )
    if name == "big.test" and kind == 16:
        data = [b"\xc8" + bytes([65 + i]) * 200 for i in range(20)]
    records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 60, len(d)) + d for d in data)
    flags = 0x8580 | (0 if known else 3)
    if 12 + len(question) + len(records) > limit:
        records, data, flags = b"", [], flags | 0x0200
    return query[:2] + struct.pack(">HHHHH", flags, 1, len(data), 0, 0) + question + records


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


class Dns(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        if reply := answer(data, 512):
            self.transport.sendto(reply, peer)


class Echo(Dns):
    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        self.transport.sendto(data, peer)


class Who(Dns):
    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        self.transport.sendto(f"{peer[0]} {peer[1]}\n".encode(), peer)


async def dns(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while head := await reader.read(1):
        size = int.from_bytes(head + await reader.readexactly(1), "big")
        reply = answer(await reader.readexactly(size), 65535)
        writer.write(struct.pack(">H", len(reply)) + reply)


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    path = head.split()[1].decode()
    peer = writer.get_extra_info("peername")
    status, body = "200 OK", f"you are {peer[0]} {peer[1]}\n".encode()
    if path.startswith("/bytes/"):
        body = bytes(range(256)) * (int(path[7:]) // 256) + bytes(range(int(path[7:]) % 256))
    elif path != "/":
        status, body = "404 Not Found", b"no such page\n"
    writer.write(f"HTTP/1.0 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 18):
        writer.write(data)
        await writer.drain()


async def who(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    peer = writer.get_extra_info("peername")
    writer.write(f"{peer[0]} {peer[1]}\n".encode())


def served(talk: Talk) -> Talk:
    """The same, closing when it returns; a client that vanishes ends it."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        finally:
            writer.close()

    return one


async def main() -> None:
    loop = asyncio.get_running_loop()
    for address in (V4, V6):
        for port, datagram, stream in ((53, Dns, dns), (80, None, http), (7, Echo, echo), (37, Who, who)):
            if datagram:
                await loop.create_datagram_endpoint(datagram, local_addr=(address, port))
            await asyncio.start_server(served(stream), address, port, backlog=4096)
    await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=(SILENT, 53))
    if len(sys.argv) > 1:
        os.write(int(sys.argv[1]), b"up\n")
        os.close(int(sys.argv[1]))
    await asyncio.Event().wait()


asyncio.run(main())
