"""The small servers and clients of the benchmark, one process each: ``python3 -I -S pump.py MODE ARGS…``.

They are the same for every program under test, so what they cost is in every figure alike. Only the standard library.
Servers write one line when they listen and run until they are ended. Clients print one line of JSON and exit;
times in it are seconds.

    echo ADDRESS PORT                        answers every message, one connection after the other
    greet ADDRESS PORT                       accepts, reads one byte, sends one, closes
    hold ADDRESS PORT                        accepts, sends one byte, keeps the connection until the peer closes
    rr ADDRESS PORT SECONDS SIZE             request and response of SIZE bytes on one connection
    connect ADDRESS PORT SECONDS CLIENTS N   CLIENTS processes: connect, one byte each way, close; N times at most
    keep ADDRESS PORT N                      opens N connections to ``hold``, prints, keeps them until its input ends
    syn ADDRESS…                             SYNs without end, to all of them in turn, from ports of all kinds (as root)
    api PATH rest|slirp SECONDS              one management request at a time, 100 a second at most, new connection each
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import sys
import time

CONNECT_LIMIT = 10.0  # seconds one connection may take before it counts as failed


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def listener(address: str, port: int) -> socket.socket:
    s = socket.socket(family(address))  # "::" takes IPv4 too
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port))
    s.listen(4096)
    print("listening", flush=True)
    return s


def echo(address: str, port: int) -> None:
    s = listener(address, port)
    while True:
        peer, _ = s.accept()
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while data := peer.recv(65536):
                peer.sendall(data)
        except OSError:
            pass  # the client was ended: the next one
        peer.close()


def greet(address: str, port: int) -> None:
    s = listener(address, port)
    while True:
        peer, _ = s.accept()
        try:
            peer.send(peer.recv(1))
        except OSError:
            pass  # gone already; its client counts that
        peer.close()


def hold(address: str, port: int) -> None:
    s = listener(address, port)
    poll = select.epoll()
    poll.register(s, select.EPOLLIN)
    peers: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poll.poll():
            if fd == s.fileno():
                peer, _ = s.accept()
                peers[peer.fileno()] = peer
                poll.register(peer, select.EPOLLIN)
                with contextlib.suppress(OSError):  # gone already: its next event says so
                    peer.send(b"x")
                continue
            try:
                data = peers[fd].recv(4096)
            except OSError:
                data = b""
            if not data:
                poll.unregister(fd)
                peers.pop(fd).close()


def dial(address: str, port: int) -> socket.socket:
    s = socket.socket(family(address))
    # A time limit by the kernel: settimeout() would make the socket non-blocking and add a poll to every call.
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(CONNECT_LIMIT), 0))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(CONNECT_LIMIT), 0))
    try:
        s.connect((address, port))
    except BlockingIOError:  # EINPROGRESS, socket(7): what SO_SNDTIMEO makes of a connect
        s.close()
        raise TimeoutError(f"not connected within {CONNECT_LIMIT:g} s") from None
    except OSError:
        s.close()
        raise
    return s


def spread(times: list[float]) -> dict[str, float]:
    """Count, median, 99th percentile and maximum; all 0 where nothing was measured."""
    if not times:
        return {"n": 0, "p50": 0.0, "p99": 0.0, "max": 0.0}
    times.sort()
    last = len(times) - 1
    return {"n": len(times), "p50": times[last // 2], "p99": times[last * 99 // 100], "max": times[last]}


def rr(address: str, port: int, seconds: float, size: int) -> dict[str, float]:
    s = dial(address, port)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    message = b"x" * size
    clock = time.perf_counter
    times: list[float] = []
    for _ in range(20):  # the first ones pay for the connection
        exchange(s, message)
    start = clock()
    until = start + seconds
    while (before := clock()) < until:
        exchange(s, message)
        times.append(clock() - before)
    return {"rate": len(times) / (clock() - start), **spread(times)}


def exchange(s: socket.socket, message: bytes) -> None:
    s.send(message)
    left = len(message)
    while left:
        data = s.recv(left)
        if not data:
            raise ConnectionError("the echo server closed")
        left -= len(data)


def one_client(address: str, port: int, until: float, count: int) -> tuple[list[float], int]:
    clock = time.perf_counter
    times: list[float] = []
    failed = 0
    while len(times) + failed < count and (before := clock()) < until:
        try:
            with dial(address, port) as s:
                s.send(b"x")  # the client speaks first: the pasta of 2023 never finishes a connection where it does not
                got = s.recv(1)
        except OSError:
            got = b""
        if got:
            times.append(clock() - before)
        else:
            failed += 1
    return times, failed


def connect(address: str, port: int, seconds: float, clients: int, count: int) -> dict[str, float]:
    start = time.perf_counter()  # CLOCK_MONOTONIC: the same in every child
    pipes = []
    for _ in range(clients):
        r, w = os.pipe()
        if os.fork() == 0:
            os.close(r)
            times, failed = one_client(address, port, start + seconds, count // clients)
            with os.fdopen(w, "w") as out:
                json.dump([times, failed], out)
            os._exit(0)
        os.close(w)
        pipes.append(r)
    times, failed = [], 0
    for r in pipes:
        with os.fdopen(r) as part:
            some, bad = json.load(part)
        times += some
        failed += bad
    took = time.perf_counter() - start
    return {"rate": len(times) / took, "failed": failed, "seconds": took, **spread(times)}


def keep(address: str, port: int, count: int) -> None:
    start = time.perf_counter()
    peers: list[socket.socket] = []
    try:
        for _ in range(count):
            s = dial(address, port)
            if s.recv(1) != b"x":
                raise ConnectionError("closed")
            peers.append(s)
    except OSError as e:
        raise OSError(f"connection {len(peers) + 1}: {e}") from None
    print(json.dumps({"n": len(peers), "seconds": time.perf_counter() - start}), flush=True)
    sys.stdin.read()


def syn(*addresses: str) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as s:
        s.connect((addresses[0], 9))
        source = socket.inet_aton(s.getsockname()[0])
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    packets = []
    for n in range(20_000):  # what they cost is not to bound the flood
        address = addresses[n % len(addresses)]
        head = struct.pack("!HHIIBBHHH", 1024 + n % 60_000, 10_000 + n * 7 % 50_000, n, 0, 0x50, 2, 0xFFFF, 0, 0)
        pseudo = source + socket.inet_aton(address) + struct.pack("!HH", socket.IPPROTO_TCP, len(head))
        total = sum(struct.unpack("!16H", pseudo + head))
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        packets.append((head[:16] + struct.pack("!H", 0xFFFF - total) + head[18:], (address, 0)))
    while True:
        for packet, to in packets:
            with contextlib.suppress(OSError):  # the queue is full
                s.sendto(packet, to)


def api(path: str, kind: str, seconds: float) -> dict[str, float]:
    if kind == "rest":
        request = b"GET /v1/networks HTTP/1.1\r\nHost: netd\r\nConnection: close\r\n\r\n"
    else:
        request = b'{"execute":"list_hostfwd"}'
    until = time.perf_counter() + seconds
    times: list[float] = []
    failed = 0
    while (before := time.perf_counter()) < until:
        reply = b""
        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(CONNECT_LIMIT)
                s.connect(path)
                s.sendall(request)
                while part := s.recv(65536):
                    reply += part
        except OSError:
            pass  # counted just below
        if (b" 200 " in reply[:16]) if kind == "rest" else (b"entries" in reply):
            times.append(time.perf_counter() - before)
        else:
            failed += 1
        time.sleep(max(0.0, before + 0.01 - time.perf_counter()))
    return {"failed": failed, **spread(times)}


def main(mode: str, *args: str) -> None:
    servers = {"echo": echo, "greet": greet, "hold": hold}
    if mode in servers:
        servers[mode](args[0], int(args[1]))
    elif mode == "rr":
        print(json.dumps(rr(args[0], int(args[1]), float(args[2]), int(args[3]))))
    elif mode == "connect":
        print(json.dumps(connect(args[0], int(args[1]), float(args[2]), int(args[3]), int(args[4]))))
    elif mode == "keep":
        keep(args[0], int(args[1]), int(args[2]))
    elif mode == "syn":
        syn(*args)
    elif mode == "api":
        print(json.dumps(api(args[0], args[1], float(args[2]))))
    else:
        raise SystemExit(f"pump: no mode {mode!r}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as e:
        raise SystemExit(f"pump {' '.join(sys.argv[1:])}: {e}") from None
