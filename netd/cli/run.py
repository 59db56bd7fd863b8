"""``netd run``: a command in user, mount and network namespaces of its own, connected by netd. No set-up.

Three processes. This one waits. Its child makes the namespaces, says so, and waits at a gate until the network is up;
then it becomes the command. Where no daemon answers, a guard (``netd.cli.private``) keeps one for this command alone.
The child dies with us, the network ends with the child, the guard ends what it started when our end of its pipe closes:
however this process goes, nothing stays behind. Terminal, process group and job control are the command's own business:
we are in its group as a shell's subshell would be, and only look on.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from argparse import REMAINDER, ArgumentParser, Namespace
from collections.abc import Callable
from types import FrameType

from netd.cli import isolation
from netd.cli.client import Client, network_target, socket_path
from netd.cli.failure import EXIT_FAILED, Failure, complain
from netd.cli.publish import parse_all

TYPE_CHECKING = False  # importing typing would cost every command 2 ms
if TYPE_CHECKING:
    from typing import Any, NoReturn

EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND = 126, 127  # as shells have it
PING_TIMEOUT = 10.0  # seconds; a service manager may have to start the daemon first
PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # the terminal sends the others itself


def configure_run(parser: ArgumentParser) -> None:
    parser.usage = "netd run [options] [--] [COMMAND [ARG…]]"
    parser.add_argument("-p", "--publish", action="append", default=[], metavar="SPEC",
                        help="[[IP:][HOSTPORT]:]CONTAINERPORT[/PROTO]; may be repeated")  # fmt: skip
    parser.add_argument("--name", default="", help="the network's name (default: its id)")
    parser.add_argument("-4", "--ipv4-only", action="store_true", help="no IPv6 in there")
    parser.add_argument("--mtu", type=int, help="default 65520; below 1280 there is no IPv6")
    parser.add_argument("--allow-host-loopback", action="store_true", help="let the gateway address reach 127.0.0.1")
    parser.add_argument("command", nargs=REMAINDER, metavar="COMMAND", help="default: $SHELL")


def run(args: Namespace) -> int:
    """Run the command; its exit status, 128+N for signal N, 125 if it never ran."""
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    words = words or [os.environ.get("SHELL") or "/bin/sh"]
    wanted: dict[str, Any] = {"origin": "run", "name": args.name, "ports": parse_all(args.publish)}
    if args.mtu is not None:
        wanted["mtu"] = args.mtu
    if args.ipv4_only:
        wanted["ipv6"] = False
    if args.allow_host_loopback:
        wanted["allow_host_loopback"] = True
    running = _find_daemon(args.url)
    if running is not None:
        return _run(words, wanted, lambda: running)
    from netd.cli.private import PrivateDaemon

    with PrivateDaemon(verbose=args.log_level == "debug") as private:
        return _run(words, wanted, private.wait)


def _find_daemon(url: str | None) -> Client | None:
    """The daemon that was named, which then must answer, or the user's own if it does."""
    client = Client(socket_path(url))
    if url or os.environ.get("NETD_HOST"):
        client.get("/v1/version")
        return client
    return client if os.path.exists(client.path) and client.answers(PING_TIMEOUT) else None


def _run(words: list[str], wanted: dict[str, Any], find: Callable[[], Client]) -> int:
    child = Child(words)
    client: Client | None = None
    network: dict[str, Any] | None = None
    try:
        child.wait_isolated()
        client = find()
        network = client.post("/v1/networks", {**wanted, "pid": child.pid})
        # IPv4 first: that one answers on every host. A daemon started before an upgrade knows no other.
        servers = [network["dns_ip"], network.get("dns_ip6", "")]
        return child.run([address for address in servers if address], client.path)
    finally:
        child.end()
        if client is not None and network is not None:
            try:
                client.delete(network_target(network["id"]) + "?ignore=true")
            except Failure:
                pass  # its lifeline was the child


class Child:
    """The process that becomes the command."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._ended = False
        said, say = os.pipe()
        hear, self._gate = os.pipe()
        us = os.getpid()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(said)
                os.close(self._gate)
                self._become(us, say, hear)
            except BaseException as exc:
                if not isinstance(exc, KeyboardInterrupt):
                    complain(Failure(f"netd run: {exc}"))
            finally:
                os._exit(EXIT_FAILED)
        os.close(say)
        os.close(hear)
        self._said = said

    def wait_isolated(self) -> None:
        """Until the namespaces are made. Failure says why they could not be."""
        with open(self._said, "rb") as said:
            text = said.read()
        if text != b"isolated":
            stage, number = json.loads(text) if text else ("fork", 0)
            raise isolation.refusal(stage, number)

    def run(self, name_servers: list[str], socket: str) -> int:
        """Open the gate and wait for the end; the exit status."""
        for number in (signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)  # the terminal sends these to the command as well
        for number in PASSED_ON:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._pass_on)
        os.write(self._gate, json.dumps([name_servers, socket]).encode())
        os.close(self._gate)
        self._gate = -1
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self._ended = True  # from here on the number may become another's: nothing is passed on
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code if code >= 0 else 128 - code

    def end(self) -> None:
        """If it still waits at the gate: it goes."""
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1
        if not self._ended:
            self._ended = True
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if not self._ended:
            os.kill(self.pid, number)

    def _become(self, parent: int, say: int, hear: int) -> NoReturn:
        """In the child: isolate, wait at the gate, execute."""
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores them, and a command inherits that
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            isolation.isolate(parent)
        except isolation.Refused as exc:
            os.write(say, json.dumps([exc.stage, exc.number]).encode())
            os._exit(EXIT_FAILED)
        os.write(say, b"isolated")
        os.close(say)
        with open(hear, "rb") as gate:
            text = gate.read()
        if not text:
            os._exit(EXIT_FAILED)  # they have complained
        name_servers, socket = json.loads(text)
        try:
            isolation.use_name_servers(name_servers)
        except (isolation.Refused, OSError) as exc:
            print(f"warning: names may not resolve: {isolation.RESOLV_CONF}: {exc}", file=sys.stderr)
        os.environ["NETD_HOST"] = f"unix://{socket}"
        try:
            os.execvp(self._words[0], self._words)
        except (FileNotFoundError, NotADirectoryError):
            complain(Failure(f"{self._words[0]}: command not found"))
            os._exit(EXIT_NOT_FOUND)
        except (OSError, ValueError) as exc:
            complain(Failure(f"{self._words[0]}: {getattr(exc, 'strerror', None) or exc}"))
            os._exit(EXIT_NOT_EXECUTABLE)
