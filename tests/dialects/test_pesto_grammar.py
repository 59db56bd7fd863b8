"""pesto's command line, and what its edits make of the tables. The latter is what the pesto of October 2026 does."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import netd
from netd.dialects.outcome import Outcome
from netd.dialects.pasta.portspec import PortError, PortTable, parse_ports
from netd.dialects.pesto import texts
from netd.dialects.pesto.grammar import OPTIONS, PestoCall, apply, parse

ME = "/usr/bin/pesto"
PLUGIN = Path(__file__).parents[2] / "plugin"
EPHEMERAL = range(32768, 61000)


def run(words: str) -> PestoCall | Outcome:
    return parse(ME, shlex.split(words), EPHEMERAL)


def steps(call: PestoCall) -> list[str]:
    """Each edit as "ACTION TABLE -OPTION SPEC"."""
    return [
        f"{edit.action} {edit.table}" + (f" -{edit.spec.option} {edit.spec.text}" if edit.spec else "")
        for edit in call.edits
    ]


VALID: list[tuple[str, list[str]]] = [
    ("/s", []),
    ("-s /s", []),
    ("--show /s", []),
    ("-d /s", []),
    ("--debug /s", []),
    ("-A /s", []),
    ("-A -D /s", []),
    # Podman 6.0
    ("--add -t 0.0.0.0/8080 -t [::]/8080 /s", ["add HOST -t 0.0.0.0/8080", "add HOST -t [::]/8080"]),
    ("--delete -t 0.0.0.0/8080 -t [::]/8080 /s", ["delete HOST -t 0.0.0.0/8080", "delete HOST -t [::]/8080"]),
    # Podman 6.1
    (
        "--add -t 0.0.0.0/12345:10.88.0.7/80 -t [::]/12345:fda6::2/80 -t 127.0.0.1/5000-5002:10.88.0.7/5000-5002 /s",
        [
            "add HOST -t 0.0.0.0/12345:10.88.0.7/80",
            "add HOST -t [::]/12345:fda6::2/80",
            "add HOST -t 127.0.0.1/5000-5002:10.88.0.7/5000-5002",
        ],
    ),
    ("--delete -u 0.0.0.0/53:10.88.0.7/53 /s", ["delete HOST -u 0.0.0.0/53:10.88.0.7/53"]),
    # the order counts
    ("-t 1024 -U 1025 /s", ["replace HOST -t 1024", "replace SPLICE -U 1025"]),
    ("-C HOST -t 1024 -C SPLICE -U 1025 /s", ["clear HOST", "replace HOST -t 1024", "clear SPLICE", "replace SPLICE -U 1025"]),
    ("-A -t 2000 -D -t 3000 -U 5000 /s", ["add HOST -t 2000", "delete HOST -t 3000", "delete SPLICE -U 5000"]),
    (
        "-A -t 2000 -C HOST -A -T 3000 -t 2001 -D -u 5000 /s",
        ["add HOST -t 2000", "clear HOST", "add SPLICE -T 3000", "add HOST -t 2001", "delete HOST -u 5000"],
    ),
    ("-t 7 -A -t 8 /s", ["replace HOST -t 7", "add HOST -t 8"]),
    ("-D -t 22 -A -t 22:23 /s", ["delete HOST -t 22", "add HOST -t 22:23"]),
    # every spelling
    ("--clear HOST --clear=SPLICE /s", ["clear HOST", "clear SPLICE"]),
    ("-A --tcp-ports 1 --udp-ports=2 --tcp-ns 3 --udp-ns=4 /s", [
        "add HOST -t 1", "add HOST -u 2", "add SPLICE -T 3", "add SPLICE -U 4",
    ]),
    ("-A -t1 -u2 -T3 -U4 /s", ["add HOST -t 1", "add HOST -u 2", "add SPLICE -T 3", "add SPLICE -U 4"]),
    ("-sAt 22 /s", ["add HOST -t 22"]),
    ("--ad -t 22 --del -t 23 /s", ["add HOST -t 22", "delete HOST -t 23"]),
    ("/s -A -t 22", ["add HOST -t 22"]),  # wherever the socket stands
    ("-A /s -t 22", ["add HOST -t 22"]),
    ("-A -t 22 -- /s", ["add HOST -t 22"]),
    ("-t none /s", ["replace HOST -t none"]),
    ("-t auto,8000-8010,~8005 /s", ["replace HOST -t auto,8000-8010,~8005"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), VALID, ids=[words for words, _ in VALID])
def test_valid(words: str, expected: list[str]) -> None:
    call = run(words)
    assert isinstance(call, PestoCall), call
    assert (call.socket, steps(call)) == ("/s", expected)
    for edit in call.edits:
        assert edit.spec is None or edit.spec == parse_ports(edit.spec.text, edit.spec.option, EPHEMERAL)


@pytest.mark.parametrize(
    ("words", "show", "change", "debug"),
    [
        ("/s", True, False, False),
        ("-s /s", True, False, False),
        ("-d /s", True, False, True),
        ("-A /s", False, True, False),
        ("-s -A /s", True, True, False),
        ("-t 22 /s", False, True, False),
        ("-s -t 22 /s", True, True, False),
        ("-d -t 22 /s", False, True, True),
        ("-C HOST /s", False, True, False),
        ("-D -t 22 /s -s", True, True, False),
    ],
)
def test_what_is_shown(words: str, show: bool, change: bool, debug: bool) -> None:
    call = run(words)
    assert isinstance(call, PestoCall)
    assert (call.show, call.change, call.debug) == (show, change, debug)


INVALID: list[tuple[str, str]] = [
    ("''", 'Invalid socket path ""'),
    ("-A -t 22 ''", 'Invalid socket path ""'),
    ("p" * 108, f'Invalid socket path "{"p" * 108}"'),
    ("-C FOO /s", "Unsupported pif name FOO"),
    ("-C host /s", "Unsupported pif name host"),
    ("-C '' /s", "Unsupported pif name "),
    ("--clear=TAP /s", "Unsupported pif name TAP"),
    ("-C FOO -t x /s", "Unsupported pif name FOO"),
    ("-t x -C FOO /s", "Invalid port specifier 'x'"),
    ("-t x /s", "Invalid port specifier 'x'"),
    ("-A -u 127.0.0.1/x /s", "Invalid port specifier 'x'"),
    ("-D -t 22 -T x /s", "Invalid port specifier 'x'"),
    ("-A -T 127.0.0.1/22 /s", "Listening address not allowed for -T 127.0.0.1/22"),
    ("-A -U /22 /s", "Listening address not allowed for -U /22"),
    ("-t %../22 /s", "Invalid interface name: .."),
]


@pytest.mark.parametrize(("words", "message"), INVALID, ids=[words[:40] for words, _ in INVALID])
def test_invalid(words: str, message: str) -> None:
    assert run(words) == Outcome(1, "", message + "\n")


@pytest.mark.parametrize("words", ["", "-s", "-A -t 22", "/s /t", "-A -t 22 /s x", "--"])
def test_not_one_socket(words: str) -> None:
    assert run(words) == Outcome(1, "", texts.usage(ME))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--foo /s", "unrecognized option '--foo'"),
        ("-x /s", "invalid option -- 'x'"),
        ("-v", "invalid option -- 'v'"),
        ("--d /s", "option '--d' is ambiguous; possibilities: '--delete' '--debug'"),
        ("--add=1 /s", "option '--add' doesn't allow an argument"),
        ("-A=1 /s", "invalid option -- '='"),
        ("/s -t", "option requires an argument -- 't'"),
        ("/s --clear", "option '--clear' requires an argument"),
    ],
)
def test_no_such_option(words: str, complaint: str) -> None:
    assert run(words) == Outcome(1, "", f"{ME}: {complaint}\n{texts.usage(ME)}")


@pytest.mark.parametrize("option", OPTIONS, ids=[option.long for option in OPTIONS])
def test_every_option_with_and_without_an_argument(option: object) -> None:
    assert hasattr(option, "long") and hasattr(option, "argument")
    wrong = run(f"/s --{option.long}") if option.argument else run(f"/s --{option.long}=1")
    reason = "requires an argument" if option.argument else "doesn't allow an argument"
    assert wrong == Outcome(1, "", f"{ME}: option '--{option.long}' {reason}\n{texts.usage(ME)}")


def test_help_and_version() -> None:
    for words in ("-h", "--help", "-sh", "--help --foo", "-t x -h", "-C FOO --help"):
        assert run(words) == Outcome(0, texts.usage(ME))
    for words in ("--version", "--vers /s x"):
        assert run(words) == Outcome(0, texts.version())
    assert texts.version().splitlines()[0] == f"pesto 2026_10_02.netd-{netd.__version__}"
    words = set(texts.usage(ME).replace(",", " ").split())
    assert {f"--{option.long}" for option in OPTIONS} <= words
    assert {f"-{option.short}" for option in OPTIONS if option.short} <= words


def test_the_texts_beside_the_shim_are_these() -> None:
    """To write them again: {argv0} stands for itself in the file."""
    for kind, said in (("help", texts.usage("{argv0}")), ("version", texts.version())):
        path = PLUGIN / f"pesto.{kind}"
        assert path.read_text() == said, f"{path} is out of date"
        assert path.stat().st_mode & 0o111 == 0, "nothing that a search for programs would find"


# --- edits ---------------------------------------------------------------------------------------------------------

THERE = {"HOST": ["t22", "u53"], "SPLICE": ["T99", "U98"]}


def tables(there: dict[str, list[str]], **families: bool) -> dict[str, PortTable]:
    made = {}
    for name, specs in there.items():
        made[name] = PortTable(**families)
        for text in specs:
            made[name].extend(parse_ports(text[1:], text[0], EPHEMERAL))
    return made


def after(words: str, before: dict[str, PortTable]) -> tuple[list[str], list[str]]:
    call = run(words + " /s")
    assert isinstance(call, PestoCall), call
    changed = apply(call.edits, before)
    host, splice = (
        [str(rule).replace("  ", " ").strip() for rule in changed[name].rules] for name in ("HOST", "SPLICE")
    )
    return host, splice


HOST = ["TCP [*]:22 => 22", "UDP [*]:53 => 53"]
SPLICE = ["TCP [*]%lo:99 => 99", "UDP [*]%lo:98 => 98"]
APPLIED: list[tuple[str, list[str], list[str]]] = [
    ("", HOST, SPLICE),
    ("-A", HOST, SPLICE),
    ("-t none", [], SPLICE),
    ("-t 23", ["TCP [*]:23 => 23"], SPLICE),
    ("-u 23 -T 11", ["UDP [*]:23 => 23"], ["TCP [*]%lo:11 => 11"]),
    ("-U 23", HOST, ["UDP [*]%lo:23 => 23"]),
    ("-t 5 -t 6", ["TCP [*]:5 => 5", "TCP [*]:6 => 6"], SPLICE),
    ("-t 5 -C SPLICE -t 6", ["TCP [*]:5 => 5", "TCP [*]:6 => 6"], []),
    ("-C SPLICE -t 6", ["TCP [*]:6 => 6"], []),
    ("-C HOST", [], SPLICE),
    ("-C HOST -t 5 -t 6", ["TCP [*]:5 => 5", "TCP [*]:6 => 6"], SPLICE),
    ("-C HOST -C SPLICE", [], []),
    ("-t 5 -A -t 6 -u 7", ["TCP [*]:5 => 5", "TCP [*]:6 => 6", "UDP [*]:7 => 7"], SPLICE),
    ("-t 5 -D -t 5", [], SPLICE),
    ("-A -t 5", [*HOST, "TCP [*]:5 => 5"], SPLICE),
    ("-A -t 5 -C HOST -t none -t 6", ["TCP [*]:6 => 6"], SPLICE),
    ("-A -t 5 -C HOST -A -t 6", ["TCP [*]:6 => 6"], SPLICE),
    ("-D -t 22 -u 53", [], SPLICE),
    ("-D -t 22 -T 99", HOST[1:], SPLICE[1:]),
    ("-D -t 22 -A -t 22:23", [HOST[1], "TCP [*]:22 => 23"], SPLICE),
    ("-D -t 22 -A -t 192.0.2.99/22", [HOST[1], "TCP [192.0.2.99]:22 => 22"], SPLICE),
    ("-D -t 22 -A -t none -t 24", [HOST[1], "TCP [*]:24 => 24"], SPLICE),
    ("-A -t 22", HOST, SPLICE),  # it is there
    ("-A -t 22-23,~23,30", [*HOST, "TCP [*]:30 => 30"], SPLICE),  # the half of it is
    ("-A -t 0.0.0.0/12345:10.88.0.7/80", [*HOST, "TCP [0.0.0.0]:12345 => 10.88.0.7:80"], SPLICE),
]


@pytest.mark.parametrize(("words", "host", "splice"), APPLIED, ids=[case[0] or "nothing" for case in APPLIED])
def test_apply(words: str, host: list[str], splice: list[str]) -> None:
    assert after(words, tables(THERE)) == (host, splice)


IMPOSSIBLE: list[tuple[str, str]] = [
    ("-A -t none", "-t none conflicts with previous options"),
    ("-D -t none", "-t none conflicts with previous options"),
    ("-A -t 5 -u none", "-u none conflicts with previous options"),
    ("-t 5 -t none", "-t none conflicts with previous options"),
    ("-t 22 -t 22",
     "Forwarding configuration conflict: TCP [*]:22  =>  22  versus TCP [*]:22  =>  22 \nUnable to add rule TCP [*]:22  =>  22 "),
    ("-A -t 5 -t 5",
     "Forwarding configuration conflict: TCP [*]:5  =>  5  versus TCP [*]:5  =>  5 \nUnable to add rule TCP [*]:5  =>  5 "),
    ("-A -t 22:23",
     "Forwarding configuration conflict: TCP [*]:22  =>  23  versus TCP [*]:22  =>  22 \nUnable to add rule TCP [*]:22  =>  23 "),
    ("-A -t 127.0.0.1/22",
     "Forwarding configuration conflict: TCP [127.0.0.1]:22  =>  22  versus TCP [*]:22  =>  22 \n"
     "Unable to add rule TCP [127.0.0.1]:22  =>  22 "),
    ("-D -t 23", "Couldn't find forwarding rule to delete: TCP [*]:23  =>  23 \nUnable to delete rule TCP [*]:23  =>  23 "),
    ("-D -t 22 -t 22", "Couldn't find forwarding rule to delete: TCP [*]:22  =>  22 \nUnable to delete rule TCP [*]:22  =>  22 "),
    ("-t 5 -D -t 22", "Couldn't find forwarding rule to delete: TCP [*]:22  =>  22 \nUnable to delete rule TCP [*]:22  =>  22 "),
    ("-D -t auto",
     "Specifier TCP [*]:1-32767  =>  1-32767  (best effort) (auto-scan) conflicts with rule TCP [*]:22  =>  22 , "
     "but doesn't match it, can't delete\nUnable to delete rule TCP [*]:1-32767  =>  1-32767  (best effort) (auto-scan)"),
    ("-A -t 5:1.2.3.4",
     "Dual stack forward to IPv4 address 1.2.3.4 unsupported\nDid you mean 0.0.0.0/... instead?\n"
     "Unable to add rule TCP [*]:5  =>  1.2.3.4:5 "),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), IMPOSSIBLE, ids=[words for words, _ in IMPOSSIBLE])
def test_impossible_edits_change_nothing(words: str, message: str) -> None:
    before = tables(THERE)
    with pytest.raises(PortError) as caught:
        after("-A -T 1 " + words if words.startswith("-A") else words, before)
    assert str(caught.value) == message
    assert {name: table.rules for name, table in before.items()} == {
        name: table.rules for name, table in tables(THERE).items()
    }


def test_room_that_a_deletion_makes_can_be_used() -> None:
    """Pasta's own says "too many listening sockets" to this."""
    assert after("-D -t 30-40 -A -t 35", tables({"HOST": ["t30-40"], "SPLICE": []})) == (["TCP [*]:35 => 35"], [])


def test_a_network_of_one_family() -> None:
    before = tables({"HOST": ["t22"], "SPLICE": []}, ipv6=False)
    assert after("-A -t 22 -t 23", before)[0] == ["TCP [0.0.0.0]:22 => 22", "TCP [0.0.0.0]:23 => 23"]
    assert after("-D -t 22", before)[0] == []
    with pytest.raises(PortError, match=r"^IPv6 forward, but IPv6 not enabled\n"):
        after("-A -t [::]/24", before)


def test_tables_in_words() -> None:
    made = tables({"HOST": ["t22"], "SPLICE": []})
    assert texts.tables("passt/pasta", "/tmp/s", {name: table.rules for name, table in made.items()}) == (
        "passt/pasta configuration (/tmp/s)\n  HOST\n    TCP [*]:22  =>  22 \n  SPLICE\n"
    )


WORDS = st.one_of(
    st.sampled_from(
        [f"--{o.long}" for o in OPTIONS] + [f"-{o.short}" for o in OPTIONS if o.short] + ["--", "HOST", "SPLICE"]
    ),
    st.sampled_from([word for words, _ in VALID + INVALID for word in shlex.split(words)]),
    st.text(),
)


@given(st.lists(WORDS, max_size=8))
def test_any_command_line_is_understood_or_refused(argv: list[str]) -> None:
    end = parse(ME, argv, EPHEMERAL)
    if isinstance(end, Outcome):
        assert end.status in (0, 1) and (end.stdout + end.stderr).endswith("\n")
        return
    before = tables(THERE)
    try:
        changed = apply(end.edits, before)
    except PortError as error:
        assert str(error)
    else:
        assert set(changed) == set(before)
