"""pasta's --log-file on real file systems: one that takes blocks out of a file, and one that does not."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.dialects.pasta import logfile
from netd.dialects.pasta.logfile import CUT, SIZE_MIN, LogFile

HEADER = "pasta 0.1: /usr/bin/pasta (4711)"


def opened(path: Path, flags: int = os.O_TRUNC) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["collapse", "copy"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory where FALLOC_FL_COLLAPSE_RANGE works, and one on a tmpfs, where it does not."""
    path = tmp_path if request.param == "collapse" else Path(tempfile.mkdtemp(prefix="netd-", dir="/dev/shm"))
    with open(path / "probe", "w+b") as file:
        file.truncate(1 << 16)
        works = logfile._fallocate(file.fileno(), 8, logfile.ctypes.c_int64(0), logfile.ctypes.c_int64(8192)) == 0
    (path / "probe").unlink()
    if works == (request.param == "collapse"):
        yield path
    if request.param == "copy":
        shutil.rmtree(path)
    if works != (request.param == "collapse"):
        pytest.skip("no such file system at hand")


def numbers(path: Path) -> list[int]:
    """The numbers of the lines, after a look at the header and at each line's form."""
    header, *lines = path.read_text().splitlines()
    assert header.rstrip(" ") == HEADER
    found = [re.fullmatch(r"\d+\.\d{4}: info:    line (\d+) x*", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return [int(match[1]) for match in found if match]


def test_the_form(tmp_path: Path) -> None:
    clock = Clock()
    log = LogFile(opened(tmp_path / "log"), HEADER, clock=clock)
    log.line("info", "one")
    clock.now += 1.25
    log.line("warning", "two\nthree")
    log.line("debug", "four")
    clock.now += 100
    log.line("error", "")
    log.close()
    log.close()
    assert (tmp_path / "log").read_text() == (
        f"{HEADER}\n0.0000: info:    one\n1.2500: WARNING: two\n1.2500: WARNING: three\n1.2500:          four\n101.2500: ERROR:   \n"
    )
    log.line("info", "too late")
    assert log.lost == 1


@pytest.mark.parametrize("size", [SIZE_MIN, SIZE_MIN + 4097, 300_000])
def test_never_larger_than_the_bound_and_always_the_latest(directory: Path, size: int) -> None:
    path = directory / "log"
    log = LogFile(opened(path), HEADER, size)
    lines = size // 20
    cuts, before, lowest = 0, 0, size
    for number in range(lines):
        log.line("info", f"line {number} " + "x" * (number * 7919 % 120))
        now = os.stat(path).st_size
        assert now <= size
        if now < before:
            cuts += 1
            lowest = min(lowest, now)
            seen = numbers(path)
            assert seen == list(range(seen[0], number + 1)), "lines are missing between"
        before = now
    assert cuts >= 2
    slack = 4096 + 200  # whole blocks, whole lines
    assert size * (1 - CUT) - slack <= lowest <= size * (1 - CUT) + 200
    assert log.lost == 0
    assert numbers(path)[-1] == lines - 1
    log.close()


def test_a_bound_that_is_too_small_is_the_least(tmp_path: Path) -> None:
    log = LogFile(opened(tmp_path / "log"), HEADER, 1)
    for number in range(3000):
        log.line("info", f"line {number} ")
    assert SIZE_MIN // 2 < os.stat(tmp_path / "log").st_size <= SIZE_MIN
    log.close()


def test_long_lines_and_a_long_header_are_cut(directory: Path) -> None:
    path = directory / "log"
    log = LogFile(opened(path), "p" * 100_000, SIZE_MIN)
    for _ in range(100):
        log.line("info", "\u20ac" * 100_000)
        assert os.stat(path).st_size <= SIZE_MIN
        assert path.read_bytes().startswith(b"p" * 4000)
    assert log.lost == 0
    log.close()


def test_a_file_is_gone_on_with(directory: Path) -> None:
    path = directory / "log"
    for round_ in range(3):
        log = LogFile(opened(path, os.O_APPEND), HEADER, SIZE_MIN)
        for number in range(400):
            log.line("info", f"line {round_ * 400 + number} " + "x" * 50)
        log.close()
    seen = numbers(path)
    assert seen == list(range(seen[0], 1200)) and seen[0] > 0
    assert os.stat(path).st_size <= SIZE_MIN


@pytest.mark.parametrize("content", [b"x" * 100_000, b"\n" * 100_000, b"short line\n" * 10_000, bytes(500_000)])
def test_somebody_elses_file_is_bounded_too(directory: Path, content: bytes) -> None:
    path = directory / "log"
    path.write_bytes(content)
    log = LogFile(opened(path, 0), HEADER, SIZE_MIN)
    log.line("info", "line 1 ")
    assert os.stat(path).st_size <= SIZE_MIN
    assert path.read_text().endswith("info:    line 1 \n")
    for number in range(3000):
        log.line("info", f"line {number} ")
    numbers(path)
    assert log.lost == 0
    log.close()


def test_a_file_that_somebody_empties(directory: Path) -> None:
    path = directory / "log"
    log = LogFile(opened(path), HEADER, SIZE_MIN)
    for number in range(100):
        log.line("info", f"line {number} ")
    os.truncate(path, 0)
    log.line("info", "line 100 ")
    assert path.read_text().endswith("info:    line 100 \n") and b"\0" not in path.read_bytes()
    log.close()


def test_errors_are_counted_and_never_raised(tmp_path: Path) -> None:
    for fd in (os.open("/dev/full", os.O_RDWR), os.open("/dev/null", os.O_RDONLY), os.open("/", os.O_RDONLY)):
        log = LogFile(fd, HEADER)
        log.line("info", "x")
        assert log.lost == 2
        log.close()
    reader, writer = os.pipe()
    log = LogFile(writer, HEADER)
    log.line("info", "x")
    assert os.read(reader, 100).startswith(HEADER.encode() + b"\n") and log.lost == 0
    os.close(reader)
    log.line("info", "x")
    assert log.lost == 1
    log.close()


def test_a_disk_without_room_keeps_lines_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = LogFile(opened(path), HEADER, SIZE_MIN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        for number in range(10):
            log.line("info", f"line {number} ")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert numbers(path) == [0, 1] and log.lost == 8
    log.line("info", "line 2 ")
    assert numbers(path) == [0, 1, 2]
    log.close()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(max_size=6000), max_size=60))
def test_any_texts(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="netd-") as path:
        log = LogFile(opened(Path(path) / "log"), HEADER, SIZE_MIN)
        for text in texts:
            log.line("info", text)
            assert os.stat(Path(path) / "log").st_size <= SIZE_MIN
        assert log.lost == 0
        assert (Path(path) / "log").read_bytes().startswith(HEADER.encode())
        log.close()


def test_lone_surrogates_are_no_obstacle(tmp_path: Path) -> None:
    log = LogFile(opened(tmp_path / "log"), "pasta \udcff\nx")
    log.line("info", "\ud800")
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first == "pasta \\udcff x" and second.partition(":")[2] == " info:    \\ud800"
    log.close()
