"""Completion: the candidates, and the scripts in the shells that are here."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import TREE, Netd, environment
from tests.standin import ServerThread


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("in",), {"info", "inspect"}),
        (("",), {"ps", "run", "completion"}),
        (("--l",), {"--log-level"}),
        (("--log-level", "d"), {"debug"}),
        (("--url", "unix:///x", "det"), {"detach"}),
        (("ps", "--no"), {"--noheading", "--no-trunc"}),
        (("ps", "--format", ""), {"json"}),
        (("completion", ""), {"bash", "zsh", "fish"}),
        (("port", ""), {"add", "rm", "ls", "web", "db"}),
        (("port", "add", ""), {"web", "db"}),
        (("port", "rm", "db", ""), {"53/udp"}),
        (("detach", "we"), {"web"}),
        (("detach", "web", "d"), {"db"}),
        (("inspect", "--format", "json", "w"), {"web"}),
        (("nosuch", ""), set()),
        (("version", ""), set()),
    ],
)
def test_candidates(netd: Netd, server: ServerThread, netns_pid: int, words: tuple[str, ...], found: set[str]) -> None:
    for name, spec in (("web", "80"), ("db", "53/udp")):
        assert netd("attach", str(netns_pid), "--name", name, "-p", spec).status == 0
    udp = server.daemon.network("db").forwards()[0].spec.host_port
    found = {word.replace("53/udp", f"{udp}/udp") for word in found}
    said = netd("__complete", "--", *words)
    assert (said.status, said.err) == (0, "")
    candidates = set(said.out.split())
    assert (
        found <= candidates if words == ("",) else found == candidates - {n.id for n in server.daemon.networks.values()}
    )


def test_without_a_daemon(netd: Netd) -> None:
    said = netd("__complete", "--", "detach", "")
    assert (said.status, said.out, said.err) == (0, "", "")


@pytest.fixture
def on_path(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has a ``netd`` of this tree."""
    script = tmp_path / "netd"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m netd "$@"\n')
    script.chmod(0o755)
    return environment(PATH=f"{tmp_path}:/usr/local/bin:/usr/bin:/bin", PYTHONPATH=str(TREE))


def test_bash(on_path: dict[str, str]) -> None:
    script = """
        source <(netd completion bash)
        COMP_WORDS=(netd port l); COMP_CWORD=2; _netd; echo "${COMPREPLY[@]}"
        COMP_WORDS=(netd ""); COMP_CWORD=1; _netd; echo "${COMPREPLY[@]}"
        complete -p netd
    """
    done = subprocess.run(["bash", "-c", script], env=on_path, capture_output=True, text=True, timeout=60, check=True)
    first, second, third = done.stdout.splitlines()
    assert first == "ls"
    assert "attach" in second.split()
    assert third == "complete -o default -F _netd netd"
    assert done.stderr == ""


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh(on_path: dict[str, str]) -> None:
    script = """
        autoload -U compinit; compinit -u -D
        source <(netd completion zsh)
        compadd() { shift; print -l -- "$@" }
        _files() { print files }
        words=(netd port l); CURRENT=3; _netd
        words=(netd version ""); CURRENT=3; _netd
        print ${_comps[netd]}
    """
    done = subprocess.run(["zsh", "-fc", script], env=on_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["ls", "files", "_netd"], done


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish(on_path: dict[str, str]) -> None:
    script = "netd completion fish | source; complete -C 'netd port l'"
    done = subprocess.run(["fish", "-c", script], env=on_path, capture_output=True, text=True, timeout=60, check=True)
    assert "ls" in done.stdout.split()


def test_every_script_parses() -> None:
    from netd.cli.completion import SCRIPTS

    assert set(SCRIPTS) == {"bash", "zsh", "fish"}
    for shell, text in SCRIPTS.items():
        if shutil.which(shell):
            assert subprocess.run([shell, "-n"], input=text, text=True, check=False).returncode == 0
