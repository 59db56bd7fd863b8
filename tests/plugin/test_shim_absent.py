"""The shim where no daemon listens: it has one started, becomes the real program, or says why not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netd.dialects.slirp4netns import texts
from tests.attach.harness import PLUGIN, mode_of
from tests.plugin.peer import SHIM, Bench, altered, output


@pytest.fixture
def alone(tmp_path: Path, runtime_dir: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the shim with no daemon; ``real`` first in PATH."""
    (tmp_path / "bin").mkdir()

    def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        path = f"{PLUGIN}:{tmp_path}/bin:{os.environ['PATH']}"
        environment = {"NETD_RUNTIME_DIR": str(runtime_dir), "HOME": str(tmp_path), "PATH": path, **env}
        return subprocess.run(
            [PLUGIN / "slirp4netns", *argv], check=False, env=environment, capture_output=True, text=True, timeout=30
        )

    return run


def real_program(directory: Path, text: str) -> None:
    path = directory / "bin" / "slirp4netns"
    path.write_text(text)
    path.chmod(0o755)


def test_the_texts_beside_it_are_the_daemons() -> None:
    """One source, netd/dialects/slirp4netns/texts.py. To write them again: {argv0} stands for itself in the file."""
    for kind, said in (("help", texts.usage("{argv0}", podman=True)), ("version", texts.version())):
        assert (PLUGIN / f"slirp4netns.{kind}").read_text() == said, f"plugin/slirp4netns.{kind} is out of date"
    assert mode_of(PLUGIN / "slirp4netns.help") & 0o111 == 0, "nothing that a search for programs would find"


@pytest.mark.parametrize(
    ("word", "kind"), [("--help", "help"), ("-h", "help"), ("--version", "version"), ("-v", "version")]
)
def test_help_and_version_need_no_daemon(alone: Any, runtime_dir: Path, tmp_path: Path, word: str, kind: str) -> None:
    """``podman info`` asks for the version; nothing is started for that."""
    (tmp_path / "bin" / "systemctl").write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\nexit 1\n")
    (tmp_path / "bin" / "systemctl").chmod(0o755)
    (runtime_dir / "systemd").mkdir()
    done = alone(word, XDG_RUNTIME_DIR=str(runtime_dir))
    said = {"help": texts.usage(str(PLUGIN / "slirp4netns"), podman=True), "version": texts.version()}[kind]
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    assert not (tmp_path / "asked").exists()


def test_only_the_bare_question_is_answered_without_a_daemon(alone: Any, tmp_path: Path) -> None:
    for argv in (("--he",), ("-h", "-c"), ("--help", ""), ("-hv",), ("--", "-h"), ()):
        done = alone(*argv)
        assert (done.returncode, done.stdout) == (1, "") and "netd: no daemon" in done.stderr
    link = tmp_path / "elsewhere"
    link.mkdir()
    env = {"NETD_RUNTIME_DIR": "/nonexistent", "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    for name, word, status in (
        *(("slirp4netns", word, 0) for word in ("-h", "--help", "-v", "--version")),
        *((name, word, 0) for name in ("pasta", "pesto") for word in ("-h", "--help", "--version")),
        *((name, "-v", 1) for name in ("pasta", "pesto")),
        ("other", "--version", 1),
    ):
        if not (link / name).is_symlink():
            (link / name).symlink_to(SHIM)
        done = subprocess.run([link / name, word], check=False, env=env, capture_output=True, text=True)
        assert done.returncode == status, (name, word)
        assert bool(done.stdout) == (status == 0) and bool(done.stderr) == (status == 1)


def test_without_a_daemon_the_version_takes_at_most_20_ms(alone: Any) -> None:
    times = []
    for _ in range(30):
        begin = time.perf_counter()
        alone("--version")
        times.append(time.perf_counter() - begin)
    print(f"shim without a daemon: {min(times) * 1e3:.1f} ms at best, {sorted(times)[15] * 1e3:.1f} ms in the middle")
    assert min(times) <= 0.020


def test_no_daemon_is_one_line_and_exit_1(alone: Any, runtime_dir: Path) -> None:
    done = alone("-c", "1", "tap0")
    line = f"slirp4netns: netd: no daemon at {runtime_dir}/attach.sock: No such file or directory\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(str(runtime_dir / "attach.sock"))
    done = alone("-c", "1", "tap0")
    assert done.stderr == line.replace("No such file or directory", "Connection refused")


@pytest.mark.parametrize("how", ["variable", "file", "named file"])
def test_becomes_the_real_program_where_that_is_wanted(alone: Any, tmp_path: Path, how: str) -> None:
    real_program(tmp_path, '#!/bin/sh\necho "real $# $1 $2"; grep SigIgn /proc/self/status; exit 3\n')
    config = tmp_path / ".config" / "netd" / "netd.toml"
    config.parent.mkdir(parents=True)
    env = {}
    if how == "variable":
        env["NETD_ON_UNAVAILABLE"] = "exec-real"
    elif how == "named file":
        config = tmp_path / "other.toml"
        env["NETD_CONFIG"] = str(config)
    if how != "variable":
        config.write_text('log_level = "info"\non_unavailable = "exec-real"\n')
    done = alone("a b", "", **env)
    assert done.returncode == 3 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "real 2 a b "
    ignored = int(lines[1].split()[1], 16)
    assert not ignored & (1 << (signal.SIGPIPE - 1)), "Python's SIG_IGN went through exec"


def test_a_configuration_that_says_fail_or_is_broken(alone: Any, tmp_path: Path) -> None:
    real_program(tmp_path, "#!/bin/sh\necho real\n")
    config = tmp_path / "netd.toml"
    for content in ('on_unavailable = "fail"\n', "", "on_unavailable = [\n"):
        config.write_text(content)
        done = alone("-c", NETD_CONFIG=str(config))
        assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1


def test_two_shims_do_not_run_each_other_for_ever(alone: Any, tmp_path: Path) -> None:
    copy = altered(tmp_path, "main", "\nWAIT = 10.0 ", "\nWAIT = 9.0 ")
    (tmp_path / "bin" / "slirp4netns").symlink_to(copy)
    done = alone("-c", NETD_ON_UNAVAILABLE="exec-real")
    assert done.returncode == 1 and "netd: no daemon" in done.stderr


def test_a_daemon_that_hangs_up_at_once_counts_as_none(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    real_program(tmp_path, "#!/bin/sh\necho real\n")
    env = {**bench.env, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "NETD_ON_UNAVAILABLE": "exec-real"}
    shim, peer = bench.meet("-h", env=env)
    peer.sock.close()
    assert output(shim) == (0, "real\n", "")


def test_has_the_service_manager_start_netd(tmp_path: Path, runtime_dir: Path) -> None:
    """systemctl is a script of ours here; a real user manager is in tests/systemd."""
    (runtime_dir / "systemd").mkdir()
    (runtime_dir / "netd").mkdir()
    (tmp_path / "bin").mkdir()
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.write_text(
        f'#!/bin/sh\necho "$@" >{tmp_path}/asked\necho noise; echo noise >&2\n'
        f"while [ ! -S {runtime_dir}/netd/attach.sock ]; do sleep .01; done\n"
    )
    systemctl.chmod(0o755)
    env = {"XDG_RUNTIME_DIR": str(runtime_dir), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    shim = subprocess.Popen([PLUGIN / "slirp4netns", "-c"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (tmp_path / "asked").exists():
        assert shim.poll() is None
        time.sleep(0.005)
    (runtime_dir / "netd").rmdir()
    late = runtime_dir / "netd"
    late.mkdir()
    bench = Bench(late)
    peer = bench.peer()
    assert peer.hello()["argv"] == ["-c"]
    peer.exit(0, stdout="help\n")
    assert output(shim) == (0, "help\n", "")
    assert (tmp_path / "asked").read_text() == "--user --quiet start netd.socket netd.service\n"
    bench.close()


def test_a_service_manager_that_cannot_start_it(tmp_path: Path, runtime_dir: Path, quick: Path) -> None:
    (runtime_dir / "systemd").mkdir()
    (tmp_path / "bin").mkdir()
    systemctl = tmp_path / "bin" / "systemctl"
    env = {"XDG_RUNTIME_DIR": str(runtime_dir), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    for text in ("#!/bin/sh\nexit 5\n", "#!/bin/sh\nexec sleep 60\n", "not a program"):
        systemctl.write_text(text)
        systemctl.chmod(0o755)
        done = subprocess.run([quick, "-c"], check=False, env=env, capture_output=True, text=True, timeout=20)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "no daemon at" in done.stderr
