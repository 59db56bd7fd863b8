"""``netd serve`` as a service manager runs it: descriptors from the store, sd_notify, signals."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from .service_manager import ServiceManager

TREE = Path(__file__).resolve().parents[2]

# Puts the descriptors named on the command line at 3 and up, and becomes the daemon.
_LAUNCH = """
import os, sys
fds = [int(fd) for fd in sys.argv[1].split(",") if fd]
high = [os.dup2(fd, 1000 + at) for at, fd in enumerate(fds)]
for fd in fds:
    os.close(fd)
for at, fd in enumerate(high):
    os.dup2(fd, 3 + at)
    os.close(fd)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "netd", "serve"])
"""


class Service:
    """One unit; ``start`` begins a life of it."""

    def __init__(self, directory: Path, manager: ServiceManager | None, **environment: str) -> None:
        self.directory = directory
        self.manager = manager
        self.environment = environment
        self.process: subprocess.Popen[str] | None = None
        self.said: list[str] = []
        self._listening: threading.Thread | None = None

    def start(self) -> None:
        """Starts it and waits until it is ready."""
        handed = self.manager.hand_over() if self.manager else []
        fds = [fd for _, fd in handed]
        environment = {
            **os.environ,
            **self.environment,
            "PYTHONPATH": str(TREE),
            "NETD_RUNTIME_DIR": str(self.directory),
            "NETD_CONFIG": str(self.directory / "none.toml"),
            "LISTEN_FDS": str(len(fds)),
            "LISTEN_FDNAMES": ":".join(name for name, _ in handed),
        }
        if self.manager:
            environment["NOTIFY_SOCKET"] = self.manager.path
            self.manager.lines.clear()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, ",".join(map(str, fds))],
            pass_fds=fds,
            env=environment,
            cwd="/",
            stderr=subprocess.PIPE,
            text=True,
        )
        for fd in fds:
            os.close(fd)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if "ready on" in line:
                break
        else:
            raise AssertionError("".join(self.said))
        self._listening = threading.Thread(target=self._listen, args=(self.process.stderr,), daemon=True)
        self._listening.start()

    def _listen(self, stderr: Any) -> None:
        with stderr:
            self.said.extend(stderr)

    def end(self, number: int) -> int:
        """Sends a signal and waits; the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(20)
        self.close()
        return status

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._listening is not None:
            self._listening.join()  # until the agent has closed its end of it, too
            self._listening = None

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request to the API; the parsed answer."""
        connection = http.client.HTTPConnection("netd", timeout=20)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        try:
            connection.sock.connect(str(self.directory / "api.sock"))
            connection.request(method, f"/v1{path}", None if body is None else json.dumps(body))
            response = connection.getresponse()
            text = response.read()
            assert response.status < 300, text
            return json.loads(text) if text else None
        finally:
            connection.close()

    # -- what it costs ------------------------------------------------------------------------------------------

    def pss(self) -> int:
        """Bytes, of the daemon alone (proc_pid_smaps(5))."""
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
        raise AssertionError

    def open_fds(self) -> int:
        assert self.process is not None
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def switches(self) -> int:
        """How often it has gone to sleep by itself: once for every wake-up."""
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                return int(line.split()[1])
        raise AssertionError
