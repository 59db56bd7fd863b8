"""Programs that the pasta tests run in containers, on the host and in the world, and what asks them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.machine.machine import Machine, until
from tests.podman.podman import GENUINE, Podman

HOST6, WORLD6 = "fd77::2", "fd77::1"
USR = "-v=/usr:/usr:ro"
PYTHON = ["/usr/bin/python3", "-I", "-c"]

# On each given port, TCP and UDP, IPv4 and IPv6 apart: answers "FAMILY SOURCE PORT " and what it was told.
WHO = """
import socket, sys, threading
def tcp(s, v):
    while True:
        c, peer = s.accept()
        c.settimeout(5)
        try: c.sendall(f"{v} {peer[0]} {s.getsockname()[1]} ".encode() + c.recv(100))
        except OSError: pass
        c.close()
def udp(s, v):
    while True:
        try:
            data, peer = s.recvfrom(2000)
            s.sendto(f"{v} {peer[0]} {s.getsockname()[1]} ".encode() + data, peer)
        except OSError: pass
for port in sys.argv[1:]:
    for kind, serve in ((socket.SOCK_STREAM, tcp), (socket.SOCK_DGRAM, udp)):
        for family, any_, v in ((socket.AF_INET, "0.0.0.0", 4), (socket.AF_INET6, "::", 6)):
            s = socket.socket(family, kind)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if v == 6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            s.bind((any_, int(port)))
            if kind == socket.SOCK_STREAM: s.listen(64)
            threading.Thread(target=serve, args=(s, v)).start()
print("up", flush=True)
"""

# Questions, [PROTOCOL, ADDRESS, PORT, WORDS] each, as JSON; the answers likewise, "" where there is none within 3 s.
ASK = """
import json, socket, sys, threading
questions = json.loads(sys.argv[1])
answers = [""] * len(questions)
def ask(i, protocol, address, port, words):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM) as s:
        s.settimeout(3)
        try:
            s.connect((address, port)); s.send(words.encode())
            while data := s.recv(2000):
                answers[i] += data.decode()
                if protocol == "udp": break
        except OSError: pass
threads = [threading.Thread(target=ask, args=(i, *q)) for i, q in enumerate(questions)]
for t in threads: t.start()
for t in threads: t.join()
print(json.dumps(answers))
"""


@dataclass
class Answer:
    """What WHO said: the address family and source as the container saw them, its own port, the words."""

    family: int
    source: str
    port: int
    words: str


def ask(machine: Machine, who: str, questions: Sequence[tuple[str, str, int, str]]) -> list[Answer | None]:
    """Asks all at once as "user" (on the host) or "world"; None for what is not answered."""
    said = json.loads(machine.run([*PYTHON, ASK, json.dumps(questions)], who))
    answers: list[Answer | None] = []
    for words in said:
        parts = words.split(" ", 3)
        answers.append(Answer(int(parts[0]), parts[1], int(parts[2]), parts[3]) if len(parts) == 4 else None)
    return answers


def ask_one(machine: Machine, who: str, protocol: str, address: str, port: int, words: str = "hello") -> Answer | None:
    return ask(machine, who, [(protocol, address, port, words)])[0]


def serve(podman: Podman, name: str, options: Sequence[str], ports: Sequence[int], **run: Any) -> None:
    """Starts WHO in a container and waits until it listens."""
    podman.up(name, USR, *options, "--", *PYTHON, WHO, *map(str, ports), **run)
    until(lambda: podman("logs", name) == "up", "server in the container")
    settled(podman, name)


def settled(podman: Podman, name: str) -> None:
    """Genuine pasta speaks from a link-local address to another, which the kernel tries out for two seconds first."""
    if GENUINE:
        until(lambda: "tentative" not in podman("exec", name, "ip", "-6", "addr"), "end of address detection")
