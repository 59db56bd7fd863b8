"""The protocol's messages: what is taken, what is refused and with which words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netd.attach import message
from netd.attach.message import Answer, Exit, Listen, Open, Spawn, read_answer, read_hello, write
from netd.errors import InvalidSpec

HELLO: dict[str, Any] = {
    "version": 1,
    "argv0": "/usr/bin/slirp4netns",
    "argv": ["-c", "1", "tap0"],
    "cwd": "/",
    "pid": 4711,
    "env": {"_CONTAINERS_ROOTLESS_UID": "1000"},
    "fd1": "",
}


def encoded(**changes: Any) -> bytes:
    return json.dumps({**HELLO, **changes}).encode()


def test_a_hello_is_read() -> None:
    hello = read_hello(encoded(argv=["\udcff", "\u20ac"]))
    assert hello.argv == ["\udcff", "\u20ac"] and hello.pid == 4711 and hello.env == HELLO["env"]


def test_a_later_shim_may_say_more() -> None:
    assert read_hello(encoded(colour="blue")).argv0 == HELLO["argv0"]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "not a message of the attach protocol: no JSON"),
        (b"\xff\xfe", "not a message of the attach protocol: no JSON"),
        (b"[" * 5000, "not a message of the attach protocol: no JSON"),
        (b"[1]", "not a message of the attach protocol: no object"),
        (b"{}", "the shim speaks version None of the attach protocol, this daemon speaks 1"),
        (encoded(version=2), "the shim speaks version 2 of the attach protocol, this daemon speaks 1"),
        (encoded(version="1"), "the shim speaks version '1' of the attach protocol, this daemon speaks 1"),
        (encoded(version=2, argv=None), "the shim speaks version 2 of the attach protocol, this daemon speaks 1"),
        (encoded(argv="x"), "not a message of the attach protocol: argv: Input should be a valid list"),
        (encoded(argv=[1]), "not a message of the attach protocol: argv.0: Value error, not a text without NUL"),
        (encoded(argv=["a\0b"]), "not a message of the attach protocol: argv.0: Value error, not a text without NUL"),
        (encoded(pid=0), "not a message of the attach protocol: pid: Input should be greater than 0"),
        (encoded(pid=True), "not a message of the attach protocol: pid: Input should be a valid integer"),
        (encoded(env=[]), "not a message of the attach protocol: env: Input should be a valid dictionary"),
    ],
)
def test_what_is_no_hello_is_refused_with_a_reason(data: bytes, complaint: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        read_hello(data)
    assert str(caught.value) == complaint
    assert "\n" not in str(caught.value)


def test_too_many_words() -> None:
    assert len(read_hello(encoded(argv=["x"] * message.MAX_WORDS)).argv) == message.MAX_WORDS
    with pytest.raises(InvalidSpec):
        read_hello(encoded(argv=["x"] * (message.MAX_WORDS + 1)))


def test_answers() -> None:
    assert read_answer(b'{"ok":true}') == Answer(ok=True)
    assert read_answer(b'{"ok":false,"errno":2,"error":"No such file"}') == Answer(
        ok=False, errno=2, error="No such file"
    )
    for data in (b"{}", b'{"ok":1}', b'{"ok":true,"errno":"x"}', b"null", b'{"ok":true,"pid":1.5}'):
        with pytest.raises(InvalidSpec):
            read_answer(data)


def test_steps_are_written_as_the_shim_reads_them() -> None:
    assert json.loads(write(Open(path="/proc/1/ns/net"))) == {"op": "open", "path": "/proc/1/ns/net", "real": False}
    assert json.loads(write(Listen(path="\udcff"))) == {
        "op": "listen",
        "path": "\udcff",
        "type": "stream",
        "backlog": 64,
        "replace": True,
        "remove": False,
        "always": False,
    }


def test_a_command_is_written_word_by_word() -> None:
    assert json.loads(write(Spawn(argv=["sh", "\udcff"]))) == {
        "op": "spawn",
        "argv": ["sh", "\udcff"],
        "arg0": "",
        "hostname": "",
        "userns": True,
        "pidns": True,
    }
    with pytest.raises(ValueError, match="without NUL"):
        Spawn(argv=["a\0b"])


def test_a_text_that_is_too_long_is_cut() -> None:
    for text in ("x" * 100_000, "\udcff" * 100_000, "\U0001f600" * 50_000):
        data = write(Exit(status=1, stdout=text, stderr=text))
        assert len(data) <= message.MAX_MESSAGE
        assert text.startswith(json.loads(data)["stderr"]) and json.loads(data)["status"] == 1


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_are_too_much_for_it(data: bytes) -> None:
    for read in (read_hello, read_answer):
        with pytest.raises(InvalidSpec):
            read(data)


@settings(deadline=None, max_examples=400)
@example({"env": {"\n": 1}})
@given(st.dictionaries(st.sampled_from([*HELLO, "more"]), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)))  # fmt: skip
def test_no_object_is_too_much_for_it(changes: dict[str, Any]) -> None:
    try:
        hello = read_hello(json.dumps({**HELLO, **changes}).encode())
    except InvalidSpec as error:
        assert "\n" not in str(error)
    else:
        assert hello.version == 1 and all(isinstance(word, str) for word in hello.argv)
