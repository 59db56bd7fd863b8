"""netd.toml, the environment, and what is said about mistakes in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from netd.errors import InvalidSpec
from netd.settings import Settings, config_path, default_runtime_dir, load


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("NETD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config" / "netd" / "netd.toml"
    path.parent.mkdir(parents=True)
    return path


def test_without_a_file(tmp_path: Path) -> None:
    settings = load()
    assert settings.runtime_dir == tmp_path / "run" / "netd"
    assert settings.resolv_conf == Path("/etc/resolv.conf")
    assert settings.offload and settings.max_networks == 1024 and settings.on_unavailable == "fail"


def test_file_then_environment_then_arguments(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file.write_text('log_level = "debug"\nmax_networks = 7\noffload = false\nruntime_dir = "/run/elsewhere"\n')
    assert (load().log_level, load().max_networks, load().offload) == ("debug", 7, False)
    monkeypatch.setenv("NETD_MAX_NETWORKS", "9")
    monkeypatch.setenv("NETD_OFFLOAD", "true")
    monkeypatch.setenv("NETD_LOG_LEVEL", "")  # empty is unset
    monkeypatch.setenv("NETD_RUNTIME_DIR", str(tmp_path / "mine"))
    assert (load().max_networks, load().offload, load().log_level) == (9, True, "debug")
    assert load().runtime_dir == tmp_path / "mine"
    assert load(max_networks=3, log_level=None).max_networks == 3
    assert load(runtime_dir=tmp_path / "yours").runtime_dir == tmp_path / "yours"


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert config_path() == tmp_path / "config" / "netd" / "netd.toml"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert config_path() == Path("/home/someone/.config/netd/netd.toml")
    monkeypatch.setenv("NETD_CONFIG", "/etc/netd.toml")
    assert config_path() == Path("/etc/netd.toml")


def test_the_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert default_runtime_dir() == Path("/run/netd")
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert default_runtime_dir() == Path("/run/user/1000/netd")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("max_networks = 0", "max_networks"),
        ('max_networks = "many"', "max_networks"),
        ('log_level = "loud"', "log_level"),
        ("ofload = true", "ofload"),
        ('offload = "perhaps"', "offload"),
        ("[daemon]\noffload = true", "daemon"),
        ("offload = ", "netd.toml"),
        ("\xff", "netd.toml"),
    ],
)
def test_mistakes_are_named(file: Path, text: str, named: str) -> None:
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidSpec) as refused:
        load()
    assert named in str(refused.value) and str(file) in str(refused.value) and "\n" not in str(refused.value)


def test_a_mistake_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETD_MAX_NETWORKS", "lots")
    with pytest.raises(InvalidSpec, match="NETD_MAX_NETWORKS"):
        load()


def test_a_file_that_cannot_be_read(file: Path) -> None:
    file.mkdir()
    with pytest.raises(InvalidSpec, match=r"netd\.toml"):
        load()


def test_frozen(file: Path) -> None:
    with pytest.raises(ValidationError):
        load().offload = False  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Settings(nonsense=1)  # type: ignore[call-arg]
