"""getopt_long's rules, checked against glibc's own where Python can reach it: getopt(1) of util-linux."""

from __future__ import annotations

import shlex
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.dialects.getopt import Option, UsageError, getopt_long

OPTIONS = (
    Option("all", "all", "a"),
    Option("output", "output", "o", argument=True),
    Option("outward", "outward"),
    Option("verbose", "verbose", "v"),
    Option("verbose", "verbatim"),
    Option("x", short="x", argument=True),
)


def read(*argv: str, stop_at_first: bool = False) -> tuple[list[tuple[str, str]], list[str]]:
    words: list[str] = []
    return list(getopt_long(argv, OPTIONS, words, stop_at_first=stop_at_first)), words


@pytest.mark.parametrize(
    ("argv", "options", "words"),
    [
        ((), [], []),
        (("a", "b"), [], ["a", "b"]),
        (("-a", "w", "--output=f", "v"), [("all", ""), ("output", "f")], ["w", "v"]),  # permutation
        (("w", "-o", "f"), [("output", "f")], ["w"]),
        (("-of",), [("output", "f")], []),
        (("-aof",), [("all", ""), ("output", "f")], []),
        (("-avo", "f"), [("all", ""), ("verbose", ""), ("output", "f")], []),
        (("-oa",), [("output", "a")], []),
        (("-o", "-a"), [("output", "-a")], []),
        (("-o", "--"), [("output", "--")], []),
        (("--output", "--all"), [("output", "--all")], []),
        (("--output=",), [("output", "")], []),
        (("--output", ""), [("output", "")], []),
        (("--output=a=b",), [("output", "a=b")], []),
        (("--a",), [("all", "")], []),
        (("--outp=f",), [("output", "f")], []),
        (("--verb",), [("verbose", "")], []),  # two spellings of one option are not ambiguous
        (("-a", "--", "-v", "--", "w"), [("all", "")], ["-v", "--", "w"]),
        (("-",), [], ["-"]),
        (("-x", "-"), [("x", "-")], []),
    ],
)
def test_reads(argv: tuple[str, ...], options: list[tuple[str, str]], words: list[str]) -> None:
    assert read(*argv) == (options, words)


@pytest.mark.parametrize(
    ("argv", "options", "words"),
    [
        ((), [], []),
        (("a",), [], ["a"]),
        (("-a", "w", "--output=f", "v"), [("all", "")], ["w", "--output=f", "v"]),
        (("w", "-o", "f"), [], ["w", "-o", "f"]),
        (("-o", "f", "w", "-q", "--foo"), [("output", "f")], ["w", "-q", "--foo"]),  # no options, no mistakes
        (("-a", "-", "-v"), [("all", "")], ["-", "-v"]),
        (("-a", "", "-v"), [("all", "")], ["", "-v"]),
        (("-a", "--", "-v", "w"), [("all", "")], ["-v", "w"]),
        (("-a", "w", "--", "-v"), [("all", "")], ["w", "--", "-v"]),
        (("-o", "w", "-v"), [("output", "w"), ("verbose", "")], []),  # an argument is no word
    ],
)
def test_stops_at_the_first_word(argv: tuple[str, ...], options: list[tuple[str, str]], words: list[str]) -> None:
    assert read(*argv, stop_at_first=True) == (options, words)


@pytest.mark.parametrize("stop_at_first", [False, True])
@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("--foo",), "unrecognized option '--foo'"),
        (("--foo=bar",), "unrecognized option '--foo=bar'"),
        (("--x=1",), "unrecognized option '--x=1'"),
        (("-q",), "invalid option -- 'q'"),
        (("-aq",), "invalid option -- 'q'"),
        (("-o",), "option requires an argument -- 'o'"),
        (("-ao",), "option requires an argument -- 'o'"),
        (("--output",), "option '--output' requires an argument"),
        (("--outp",), "option '--output' requires an argument"),
        (("--all=1",), "option '--all' doesn't allow an argument"),
        (("--al=",), "option '--all' doesn't allow an argument"),
        (("--out",), "option '--out' is ambiguous; possibilities: '--output' '--outward'"),
        (("--out=3",), "option '--out=3' is ambiguous; possibilities: '--output' '--outward'"),
    ],
)
def test_complains(argv: tuple[str, ...], complaint: str, stop_at_first: bool) -> None:
    with pytest.raises(UsageError) as caught:
        read(*argv, stop_at_first=stop_at_first)
    assert str(caught.value) == complaint


def test_what_stands_before_a_mistake_is_told_first() -> None:
    seen = []
    with pytest.raises(UsageError):
        for key, _ in getopt_long(["-a", "--foo"], OPTIONS, []):
            seen.append(key)
    assert seen == ["all"]


WORDS = (
    *("-a", "-o", "-of", "-ao", "-oa", "-q", "-aq", "-vv", "-xo", "-x", "--", "-", "w", "a b", "", "--="),
    *("--all", "--al", "--all=1", "--output", "--output=", "--output=--", "--outp=f", "--out", "--outw", "--foo"),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(WORDS), max_size=5), st.booleans())
def test_agrees_with_glibc(argv: list[str], stop_at_first: bool) -> None:
    if shutil.which("getopt") is None:
        pytest.skip("getopt(1) is not installed")
    options = [option for option in OPTIONS if option.long != "verbatim"]  # getopt(1) knows no second spellings
    genuine = subprocess.run(
        ["getopt", "-n", "p", "-o", "+" * stop_at_first + "ao:vx:", "-l", "all,output:,outward,verbose", "--", *argv],
        check=False,
        capture_output=True,
        text=True,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
    )
    words: list[str] = []
    try:
        ours = list(getopt_long(argv, options, words, stop_at_first=stop_at_first))
    except UsageError as error:
        assert genuine.returncode == 1 and genuine.stderr.splitlines()[0] == f"p: {error}"
        return
    assert genuine.returncode == 0
    theirs = iter(shlex.split(genuine.stdout))
    by_spelling = {f"-{o.short}": o for o in options} | {f"--{o.long}": o for o in options}
    read = []
    for word in theirs:
        if word == "--":
            break
        option = by_spelling[word]
        read.append((option.key, next(theirs) if option.argument else ""))
    assert (read, list(theirs)) == (ours, words)
