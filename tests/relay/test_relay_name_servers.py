"""resolv.conf(5) as it is now: looked at once a second, read when it has changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netd.relay.resolver import NameServers
from netd.services.dns import servers_in


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "resolv.conf"


@pytest.fixture
def servers(file: Path, clock: Clock) -> NameServers:
    return NameServers(str(file), servers_in, clock)


def test_followed_within_a_second(file: Path, clock: Clock, servers: NameServers) -> None:
    file.write_text("nameserver 192.0.2.1\n")
    assert servers.current() == ["192.0.2.1"]
    file.write_text("nameserver 192.0.2.22\n")
    clock.now += 0.9
    assert servers.current() == ["192.0.2.1"]
    clock.now += 0.2
    assert servers.current() == ["192.0.2.22"]


def test_a_replaced_file_of_the_same_size_and_time(file: Path, clock: Clock, servers: NameServers) -> None:
    file.write_text("nameserver 192.0.2.1\n")
    os.utime(file, (1000, 1000))
    assert servers.current() == ["192.0.2.1"]
    new = file.with_suffix(".new")
    new.write_text("nameserver 192.0.2.2\n")
    os.utime(new, (1000, 1000))
    new.rename(file)
    clock.now += 1
    assert servers.current() == ["192.0.2.2"]


def test_a_file_that_is_not_there_and_comes_back(file: Path, clock: Clock, servers: NameServers) -> None:
    assert servers.current() == []
    file.write_text("nameserver 192.0.2.1\n")
    stat = file.stat()
    clock.now += 1
    assert servers.current() == ["192.0.2.1"]
    file.rename(file.with_suffix(".away"))
    clock.now += 1
    assert servers.current() == []
    file.with_suffix(".away").rename(file)  # the very same file
    assert file.stat().st_ino == stat.st_ino
    clock.now += 1
    assert servers.current() == ["192.0.2.1"]


def test_a_link_that_changes_its_target(file: Path, clock: Clock, servers: NameServers, tmp_path: Path) -> None:
    """/etc/resolv.conf as systemd-resolved and NetworkManager have it."""
    for name, ip in (("stub", "127.0.0.53"), ("real", "192.0.2.9")):
        (tmp_path / name).write_text(f"nameserver {ip}\n")
    file.symlink_to("stub")
    assert servers.current() == ["127.0.0.53"]
    file.unlink()
    file.symlink_to("real")
    clock.now += 1
    assert servers.current() == ["192.0.2.9"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("nameserver\n", []),
        ("# nameserver 192.0.2.1\n;nameserver 192.0.2.2\n", []),
        ("nameserver 192.0.2.1 # comment\n  nameserver\t192.0.2.2\n", ["192.0.2.1", "192.0.2.2"]),
        ("nameserver 1.1.1.1\n" * 5, ["1.1.1.1"] * 3),
        ("nameserver example.com\nnameserver 192.0.2.1\n", ["192.0.2.1"]),
        ("nameserver 300.1.1.1\nnameserver ::1\nnameserver fe80::1%eth0\n", ["::1", "fe80::1%eth0"]),
        ("search a b\noptions ndots:5\nnameserver 192.0.2.1", ["192.0.2.1"]),
        ("\0\xff\xfe nameserver 1.1.1.1\nnameserver 192.0.2.1\n", ["192.0.2.1"]),
    ],
)
def test_what_is_in_it(file: Path, servers: NameServers, text: str, expected: list[str]) -> None:
    file.write_bytes(text.encode("latin-1"))
    assert servers.current() == expected


def test_a_huge_file_is_read_to_a_bound(file: Path, servers: NameServers) -> None:
    file.write_text("# x\n" * 100_000 + "nameserver 192.0.2.1\n")
    assert servers.current() == []


def test_what_is_no_file(file: Path, clock: Clock, servers: NameServers) -> None:
    file.mkdir()
    assert servers.current() == []
    file.rmdir()
    os.mkfifo(file)  # nobody writes to it: opening it must not wait
    clock.now += 1
    assert servers.current() == []
