"""The shim's steps create, pidfd and realpath: files and processes as the caller sees them."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.attach.harness import PLUGIN, mode_of
from tests.plugin.peer import Bench, Peer, output


def create(peer: Peer, path: Path | str, **fields: Any) -> tuple[dict[str, Any], int]:
    return peer.ask(
        "create", path=str(path), **{"mode": 0o600, "append": False, "truncate": True, "read": False, **fields}
    )


def test_creates_a_file_for_writing(bench: Bench, tmp_path: Path) -> None:
    shim, peer = bench.meet(cwd=tmp_path, preexec_fn=lambda: os.umask(0o027))
    answer, fd = create(peer, "capture", mode=0o666)
    assert answer == {"ok": True} and mode_of(tmp_path / "capture") == 0o640
    assert os.write(fd, b"one") == 3
    with pytest.raises(OSError):
        os.read(fd, 1)
    os.close(fd)
    answer, fd = create(peer, "capture", truncate=False, append=True)
    os.write(fd, b"two")
    os.close(fd)
    assert (tmp_path / "capture").read_bytes() == b"onetwo"
    answer, fd = create(peer, "capture", truncate=False, read=True)
    os.write(fd, b"O")
    assert os.pread(fd, 100, 0) == b"Onetwo"
    os.close(fd)
    answer, fd = create(peer, "capture")
    assert (tmp_path / "capture").read_bytes() == b""
    os.close(fd)
    peer.exit()
    assert output(shim) == (0, "", "")


def test_what_cannot_be_created(bench: Bench, tmp_path: Path) -> None:
    shim, peer = bench.meet()
    os.mkfifo(tmp_path / "fifo")
    for path, errno in (("/nonexistent/x", 2), (tmp_path, 21), (tmp_path / "fifo", 6)):
        answer, fd = create(peer, path)
        assert not answer["ok"] and answer["errno"] == errno and fd == -1, path
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    answer, fd = create(peer, tmp_path / "fifo")
    assert answer["ok"] and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
    os.close(fd)
    os.close(reader)
    peer.exit()
    assert output(shim)[0] == 0


def test_opens_a_process(bench: Bench) -> None:
    shim, peer = bench.meet()
    target = subprocess.Popen(["sleep", "60"])
    answer, fd = peer.ask("pidfd", pid=target.pid)
    assert answer == {"ok": True}
    assert not select.select([fd], [], [], 0)[0]
    target.kill()
    assert select.select([fd], [], [], 5)[0]
    os.close(fd)
    target.wait()
    answer, fd = peer.ask("pidfd", pid=target.pid)
    assert answer == {"ok": False, "errno": 3, "error": "No such process"} and fd == -1
    assert peer.ask("pidfd", pid=-1)[0]["errno"] == 22
    peer.exit()
    assert output(shim)[0] == 0


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to make a pid and a mount namespace")
def test_stands_in_the_callers_namespaces(bench: Bench, tmp_path: Path) -> None:
    """A file and a process that only the caller sees under that name."""
    (tmp_path / "mnt").mkdir()
    script = 'mount -t tmpfs none "$1" && ln -s netns "$1/link" && exec "$0"'
    shim = subprocess.Popen(
        ["unshare", "-mpf", "--mount-proc", "sh", "-c", script, str(PLUGIN / "pasta"), str(tmp_path / "mnt")],
        env=bench.env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    bench.running.append(shim)
    peer = bench.peer()
    assert peer.hello()["pid"] == 1
    answer, fd = peer.ask("pidfd", pid=1)
    assert answer["ok"]
    fields = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
    assert int(fields["Pid"]) != 1
    os.close(fd)
    answer, fd = create(peer, tmp_path / "mnt" / "log")
    os.close(fd)
    assert not (tmp_path / "mnt" / "log").exists()
    assert peer.ask("realpath", path=str(tmp_path / "mnt" / "link"))[0]["text"] == str(tmp_path / "mnt" / "netns")
    peer.exit()
    assert output(shim)[0] == 0


def test_tells_where_a_path_leads(bench: Bench, tmp_path: Path) -> None:
    base = tmp_path.resolve()
    (base / "real").mkdir()
    (base / "link").symlink_to("real")
    (base / "real" / "file").symlink_to("../target")
    (base / "target").write_text("")
    (base / os.fsdecode(b"\xff")).write_text("")
    shim, peer = bench.meet(cwd=base / "link")
    for path, leads in {
        "file": f"{base}/target",
        f"{base}/link/../target": f"{base}/target",
        f"{base}/link/new": f"{base}/real/new",
        "new": f"{base}/real/new",
        "/nonexistent/./x/../y": "/nonexistent/y",
        f"{base}/\udcff": f"{base}/\udcff",
        "/proc/1/ns/net": "/proc/1/ns/net",
        f"/proc/{os.getpid()}/ns/user": f"/proc/{os.getpid()}/ns/user",
        "..": str(base),
    }.items():
        assert peer.ask("realpath", path=path) == ({"ok": True, "text": leads}, -1), path
        answer, fd = peer.ask("open", path=path, real=True)
        if fd >= 0:
            assert answer == {"ok": True, "text": leads}, path
            os.close(fd)
        else:
            assert path in ("new", f"{base}/link/new", "/nonexistent/./x/../y", "/proc/1/ns/net") and not answer["ok"]
    peer.exit()
    assert output(shim)[0] == 0
