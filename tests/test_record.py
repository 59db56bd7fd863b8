"""The state record: whole after any interruption, or none."""

from __future__ import annotations

import errno
import json
import os
import random
import struct
import zlib
from collections.abc import Iterator

import pytest

from netd.record import FORMAT, Record


@pytest.fixture
def record() -> Iterator[Record]:
    record = Record()
    yield record
    os.close(record.fd)


def again(record: Record) -> dict[str, object] | None:
    """What the next process reads."""
    return Record(record.fd).read()


def test_the_newest_is_read(record: Record) -> None:
    assert again(record) is None
    for number in range(5):
        record.write({"number": number, "long": "x" * (5000 - 1000 * number)})
        assert again(record) == {"format": FORMAT, "number": number, "long": "x" * (5000 - 1000 * number)}


def test_a_second_writer_goes_on_where_the_first_stopped(record: Record) -> None:
    for number in range(6):
        record.write({"number": number})
        record = Record(record.fd)
        content = record.read()
        assert content is not None and content["number"] == number


def test_a_write_that_stops_half_way_leaves_the_one_before(record: Record) -> None:
    """Every place in the sequence of bytes written is a place where the writer may be killed."""
    record.write({"number": 1})
    record.write({"number": 2, "pad": "y" * 300})
    writes: list[tuple[bytes, int]] = []
    real = os.pwrite

    def note(fd: int, data: bytes, at: int) -> int:
        writes.append((bytes(data), at))
        return len(data)

    os.pwrite = note  # type: ignore[assignment]
    try:
        record.write({"number": 3, "pad": "z" * 200})
    finally:
        os.pwrite = real
    assert sum(len(data) for data, _ in writes) > 200
    whole = b"".join(os.pread(record.fd, 1000, at) for _, at in writes)
    for data, at in writes:
        for cut in range(len(data)):
            real(record.fd, data[cut : cut + 1], at + cut)
            content = again(record)
            assert content is not None
            if (data, at) != writes[-1] or cut + 1 < len(data):
                assert content["number"] == 2, (at, cut)
    content = again(record)
    assert content is not None and content["number"] == 3 and whole


def test_garbage_is_none(record: Record) -> None:
    rng = random.Random(3)
    for size in (0, 1, 27, 28, 29, 5000):
        os.ftruncate(record.fd, 0)
        os.pwrite(record.fd, rng.randbytes(size), 0)
        assert again(record) is None


def slot(body: bytes, sequence: int = 1, length: int = -1) -> bytes:
    return struct.pack("=8sQQI", b"netdrec1", sequence, len(body) if length < 0 else length, zlib.crc32(body)) + body


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"7", b"{}", b"{", b'{"format": 99}', b'{"format": "1"}', b"\xff\xfe", b"[" * 100_000],
    ids=lambda body: body[:16].decode("latin-1") or "empty",
)
def test_whole_but_not_ours_is_none(record: Record, body: bytes) -> None:
    os.pwrite(record.fd, slot(body), 0)
    assert again(record) is None


def test_a_length_beyond_the_slot_is_not_read(record: Record) -> None:
    os.pwrite(record.fd, slot(b"{}", length=1 << 60), 0)
    assert again(record) is None


def test_a_newer_format_wins_over_an_older_record_of_ours(record: Record) -> None:
    """A later netd has written last: what it knows is not to be read as what we knew before."""
    record.write({"number": 1})  # slot 1
    os.pwrite(record.fd, slot(json.dumps({"format": FORMAT + 1}).encode(), sequence=2), 0)
    assert again(record) is None


def test_a_descriptor_of_another_kind_is_none() -> None:
    reading, writing = os.pipe()
    assert Record(reading).read() is None
    os.close(reading)
    os.close(writing)


def test_more_than_a_slot_is_refused_and_the_last_one_stays(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netd.record._SLOT", 4096)
    record.write({"number": 1})
    with pytest.raises(OSError) as refused:
        record.write({"number": 2, "long": "x" * 5000})
    assert refused.value.errno == errno.EFBIG
    content = again(record)
    assert content is not None and content["number"] == 1
    record.write({"number": 3})
    content = again(record)
    assert content is not None and content["number"] == 3
