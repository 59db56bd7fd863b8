"""A client of the API over its Unix socket: one HTTP/1.0 request per connection (RFC 1945), JSON both ways.

``http.client`` would bring TLS and e-mail parsing along, 30 ms on every command; a 1.0 request is never answered in
chunks, so what it would do for us here is a split at the first empty line.
"""

from __future__ import annotations

import errno
import json
import os
import socket

from netd.cli.failure import Failure

TYPE_CHECKING = False  # importing typing would cost every command 2 ms
if TYPE_CHECKING:
    from typing import Any

TIMEOUT = 30.0  # seconds; the API bounds every request below that
MAX_ANSWER = 256 << 20
START_HINT = "start it with `systemctl --user start netd` or `netd serve`"


def socket_path(url: str | None) -> str:
    """The socket that ``--url``, NETD_HOST, or else the runtime directory names."""
    url = url or os.environ.get("NETD_HOST")
    if not url:
        return os.path.join(runtime_dir(), "api.sock")
    path = url.removeprefix("unix://")
    if path == url or not path.startswith("/"):
        raise Failure(f"{url!r} is not a URL of netd", "only unix:///path/to/api.sock is supported")
    return path


def runtime_dir() -> str:
    """Where the daemon of this user has its sockets (the same rules as ``netd.settings``)."""
    if chosen := os.environ.get("NETD_RUNTIME_DIR"):
        return chosen
    config = os.environ.get("NETD_CONFIG") or os.path.join(
        os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "netd", "netd.toml"
    )
    if os.path.exists(config):
        import tomllib

        try:
            with open(config, "rb") as file:
                if chosen := tomllib.load(file).get("runtime_dir"):
                    return str(chosen)
        except (OSError, ValueError) as exc:
            raise Failure(f"{config}: {exc}") from None
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(base, "netd")
    return "/run/netd" if os.getuid() == 0 else f"/run/user/{os.getuid()}/netd"


class Client:
    """Requests to the daemon behind one socket."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, target: str) -> Any:
        """The decoded body of ``GET target``."""
        return self.request("GET", target)

    def post(self, target: str, body: Any) -> Any:
        """The decoded body that answers ``POST target``."""
        return self.request("POST", target, body)

    def delete(self, target: str) -> None:
        """``DELETE target``."""
        self.request("DELETE", target)

    def networks(self, filters: dict[str, list[str]] | None = None) -> list[dict[str, Any]]:
        """The attached networks, oldest first."""
        query = "?filters=" + quoted(json.dumps(filters)) if filters else ""
        found: list[dict[str, Any]] = self.get("/v1/networks" + query)
        return found

    def network(self, ref: str) -> dict[str, Any]:
        """One network by id, unique prefix or name."""
        found: dict[str, Any] = self.get(network_target(ref))
        return found

    def answers(self, timeout: float) -> bool:
        """True if a daemon that takes our requests is there."""
        try:
            self.request("GET", "/_ping", timeout=timeout)
        except Failure:
            return False
        return True

    def request(self, method: str, target: str, body: Any = None, timeout: float = TIMEOUT) -> Any:
        """The decoded answer, None without content. Failure: not reachable, or the problem the API reports."""
        payload = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {target} HTTP/1.0\r\nHost: netd\r\nContent-Length: {len(payload)}\r\n\r\n"
        status, media, answer = self._exchange(head.encode() + payload, timeout)
        if status >= 400:
            raise _problem(status, answer)
        return json.loads(answer) if media.endswith("json") and answer else None

    def _exchange(self, sent: bytes, timeout: float) -> tuple[int, str, bytes]:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as conn:
                conn.settimeout(timeout)
                conn.connect(self.path)
                try:
                    conn.sendall(sent)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # it may have said why before it closed
                said = _read_all(conn)
        except OSError as exc:
            raise self._unreachable(exc) from None
        head, _, body = said.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split()
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
            raise Failure(f"what answers on {self.path} is not netd")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = fields.get("content-length", "")
        if length.isdecimal() and len(body) < int(length):
            raise Failure(f"the answer on {self.path} ends half way")
        return int(words[1]), fields.get("content-type", "").partition(";")[0], body

    def _unreachable(self, exc: OSError) -> Failure:
        if isinstance(exc, FileNotFoundError | ConnectionRefusedError | ConnectionResetError | NotADirectoryError):
            return Failure(f"netd is not running: nothing answers on {self.path}", START_HINT, "not_running")
        if isinstance(exc, TimeoutError):
            return Failure(f"netd does not answer on {self.path}", "see its log: journalctl --user -u netd", "timeout")
        if isinstance(exc, PermissionError):
            return Failure(f"{self.path}: permission denied", "the socket is for its owner alone", "forbidden")
        return Failure(f"{self.path}: {exc.strerror or exc}", code=errno.errorcode.get(exc.errno or 0, ""))


def _read_all(conn: socket.socket) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        try:
            part = conn.recv(1 << 16)
        except ConnectionResetError:
            if not parts:
                raise
            break  # it answered without reading our request, and closed
        if not part:
            break
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER:
            raise OSError(errno.EMSGSIZE, "the answer does not end")
    return b"".join(parts)


def _problem(status: int, answer: bytes) -> Failure:
    try:
        document = json.loads(answer)
        return Failure(document["detail"], document.get("hint", ""), document["code"])
    except (ValueError, KeyError, TypeError):
        return Failure(f"netd answers with HTTP status {status}")


def quoted(text: str) -> str:
    """``text`` percent-encoded whole, for a URL (RFC 3986 §2)."""
    return "".join(chr(b) if (b < 128 and chr(b).isalnum()) or b in b"-._~" else f"%{b:02X}" for b in text.encode())


def network_target(ref: str) -> str:
    """The API's path of the network ``ref``."""
    return "/v1/networks/" + quoted(ref)
