"""plugin/slirp4netns: a shell that answers Podman's probe and leaves the rest to netd-shim."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from netd.dialects.slirp4netns import texts
from tests.attach.harness import PLUGIN, mode_of
from tests.plugin.peer import SHIM, Bench, output

PROGRAM = PLUGIN / "slirp4netns"
PODMAN = {"_CONTAINERS_USERNS_CONFIGURED": "done", "_CONTAINERS_ROOTLESS_UID": "1000"}


def ask(*argv: str, program: Path | str = PROGRAM, **more: Any) -> tuple[int, str, str]:
    done = subprocess.run([program, *argv], check=False, capture_output=True, text=True, timeout=20, **more)
    return done.returncode, done.stdout, done.stderr


def test_is_a_program_for_any_shell() -> None:
    assert PROGRAM.read_text().startswith("#!/bin/sh\n")
    assert mode_of(PROGRAM) & 0o111


def test_podmans_probe_is_answered_while_the_daemon_is_busy(bench: Bench, tmp_path: Path) -> None:
    """Nobody takes the connection: it is not asked."""
    said = texts.usage(str(PROGRAM), podman=True)
    assert ask("--help", env=bench.env | PODMAN) == (0, said, "")
    own = {"XDG_RUNTIME_DIR": str(tmp_path), "PATH": "/nowhere"}
    (tmp_path / "netd").symlink_to(bench.dir)
    assert ask("--help", env=own | PODMAN) == (0, said, "")
    with pytest.raises(TimeoutError):
        bench.listener.settimeout(0.2)
        bench.listener.accept()


@pytest.mark.parametrize("argv", [("--help", ""), ("-h",), ("--help", "-c"), ("--hel",), ("-c", "--help"), ()])
def test_whatever_else_podman_asks_goes_to_the_daemon(bench: Bench, argv: tuple[str, ...]) -> None:
    shim = bench.start(*argv, env=bench.env | PODMAN)
    peer = bench.peer()
    hello = peer.hello()
    assert (hello["argv0"], hello["argv"], hello["env"]) == (str(PROGRAM), list(argv), PODMAN)
    peer.exit(3)
    assert output(shim) == (3, "", "")


def test_to_others_the_daemon_says_what_there_is(bench: Bench) -> None:
    """It tells them of --enable-sandbox as well (netd/dialects/slirp4netns)."""
    shim = bench.start("--help")
    bench.peer().exit(0, stdout="from the daemon\n")
    assert output(shim) == (0, "from the daemon\n", "")


def test_without_a_daemon_the_probe_may_be_the_real_programs(tmp_path: Path) -> None:
    real = tmp_path / "slirp4netns"
    real.write_text("#!/bin/sh\necho real $*\n")
    real.chmod(0o755)
    env = PODMAN | {"NETD_RUNTIME_DIR": str(tmp_path), "PATH": f"{PLUGIN}:{tmp_path}"}
    assert ask("--help", env=env | {"NETD_ON_UNAVAILABLE": "exec-real"}) == (0, "real --help\n", "")
    assert ask("--help", env=env) == (0, texts.usage(str(PROGRAM), podman=True), "")


@pytest.mark.parametrize("first", ["link", "itself"])
def test_a_link_to_the_shim_is_not_the_real_program(tmp_path: Path, first: str) -> None:
    for name in ("links", "real"):
        (tmp_path / name).mkdir()
    link = tmp_path / "links" / "slirp4netns"
    link.symlink_to(SHIM)
    real = tmp_path / "real" / "slirp4netns"
    real.write_text("#!/bin/sh\necho real $*\n")
    real.chmod(0o755)
    program, other = (link, PLUGIN) if first == "link" else (PROGRAM, link.parent)
    env = {"NETD_RUNTIME_DIR": str(tmp_path), "NETD_ON_UNAVAILABLE": "exec-real"}
    done = ask("-c", "1", program=program, env=env | {"PATH": f"{other}:{real.parent}"})
    assert done == (0, "real -c 1\n", "")


def test_it_is_installed_over_an_older_netds(tmp_path: Path) -> None:
    """There slirp4netns was a link to netd-shim, through which cp(1) would write."""
    there = tmp_path / "libexec" / "netd"
    there.mkdir(parents=True)
    (there / "netd-shim").write_text("of old\n")
    for name in ("slirp4netns", "pasta", "pesto"):
        (there / name).symlink_to("netd-shim")
    make = ["make", "-n", "install", f"PREFIX={tmp_path}"]
    recipe = subprocess.run(make, check=True, capture_output=True, text=True, cwd=PLUGIN.parent).stdout
    [copy] = [line for line in recipe.splitlines() if line.startswith("cp ") and "plugin/" in line]
    for _ in range(2):
        subprocess.run(["sh", "-c", copy], check=True, cwd=PLUGIN.parent)
        for name in ("netd-shim", "slirp4netns", "pasta"):
            assert (there / name).read_bytes() == (PLUGIN / name).read_bytes(), name


def test_is_found_by_a_link_and_from_its_own_directory(bench: Bench, tmp_path: Path) -> None:
    link = tmp_path / "a link"
    link.symlink_to(PROGRAM)
    second = tmp_path / "slirp4netns"
    second.symlink_to("a link")
    for words, env in (
        ([link], {}),
        ([second], {"PATH": "/nowhere"}),
        (["./slirp4netns"], {}),
        (["/bin/sh", "slirp4netns"], {}),
    ):
        shim = bench.start(*words[1:], "a b", "*", program=words[0], env=bench.env | env, cwd=PLUGIN)
        peer = bench.peer()
        hello = peer.hello()
        assert (hello["argv0"], hello["argv"], hello["pid"]) == (str(words[-1]), ["a b", "*"], shim.pid)
        peer.exit(0)
        assert output(shim) == (0, "", "")


def test_is_called_so_in_the_process_list(bench: Bench) -> None:
    """``pgrep slirp4netns`` finds it, as it finds the real one (proc_pid_comm(5))."""
    shim, peer = bench.meet("-c", "1", "tap0")
    peer.stay()
    assert Path(f"/proc/{shim.pid}/comm").read_text() == "slirp4netns\n"
    assert f"\0{PROGRAM}\0-c\0001\0tap0\0" in Path(f"/proc/{shim.pid}/cmdline").read_text()
    peer.exit(0)
    assert output(shim)[0] == 0
