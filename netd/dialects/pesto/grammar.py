"""pesto's command line: argv in, a PestoCall or an Outcome out. Pure: nothing is opened or looked up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from netd.dialects.getopt import Option, UsageError, getopt_long
from netd.dialects.outcome import Outcome
from netd.dialects.pasta.portspec import PortError, PortSpec, PortTable, parse_ports
from netd.dialects.pesto import texts

OPTIONS = (
    Option("add", "add", "A"),
    Option("delete", "delete", "D"),
    Option("clear", "clear", "C", argument=True),
    Option("t", "tcp-ports", "t", argument=True),
    Option("u", "udp-ports", "u", argument=True),
    Option("T", "tcp-ns", "T", argument=True),
    Option("U", "udp-ns", "U", argument=True),
    Option("show", "show", "s"),
    Option("debug", "debug", "d"),
    Option("help", "help", "h"),
    Option("version", "version"),
)
TABLE = {"t": "HOST", "u": "HOST", "T": "SPLICE", "U": "SPLICE"}

_SUN_PATH_MAX = 107  # bytes, unix(7), without the last NUL


@dataclass(frozen=True, slots=True)
class Edit:
    """One step of a change. "replace" is "add" to a table that the first such step empties."""

    action: str  # "add" | "delete" | "replace" | "clear"
    table: str  # "HOST" (of -t and -u) | "SPLICE" (of -T and -U)
    spec: PortSpec | None = None  # None to clear


@dataclass(frozen=True, slots=True)
class PestoCall:
    """What is asked for, with every syntax checked."""

    socket: str
    edits: tuple[Edit, ...]  # in their order, which counts
    show: bool  # print the tables, before and after a change
    change: bool  # options that change were given, though maybe no edits
    debug: bool = False


class _Refused(Exception):
    """A line for stderr; "" for the usage."""


def parse(argv0: str, argv: Sequence[str], ephemeral: range) -> PestoCall | Outcome:
    """Read the command line as pesto does. ``ephemeral``: net.ipv4.ip_local_port_range, for ports that are "all"."""
    try:
        return _parse(argv0, argv, ephemeral)
    except UsageError as error:
        return Outcome(1, stderr=f"{argv0}: {error}\n" + texts.usage(argv0))
    except (_Refused, PortError) as error:
        return Outcome(1, stderr=f"{error}\n" if str(error) else texts.usage(argv0))


def _parse(argv0: str, argv: Sequence[str], ephemeral: range) -> PestoCall | Outcome:
    words: list[str] = []
    flags: set[str] = set()
    edits: list[tuple[str, str, str]] = []  # action, option or table, text
    action = "replace"
    for key, value in getopt_long(argv, OPTIONS, words):
        match key:
            case "help":
                return Outcome(0, texts.usage(argv0))
            case "version":
                return Outcome(0, texts.version())
            case "add" | "delete":
                action = key
                flags.add("change")
            case "clear":
                edits.append((key, value, ""))
            case "show" | "debug":
                flags.add(key)
            case _:
                edits.append((action, key, value))
    if len(words) != 1:
        raise _Refused
    if not 0 < len(words[0].encode("utf-8", "surrogateescape")) <= _SUN_PATH_MAX:
        raise _Refused(f'Invalid socket path "{words[0]}"')
    change = "change" in flags or bool(edits)
    return PestoCall(
        socket=words[0],
        edits=tuple(_edit(*edit, ephemeral) for edit in edits),
        show="show" in flags or not change,
        change=change,
        debug="debug" in flags,
    )


def _edit(action: str, subject: str, text: str, ephemeral: range) -> Edit:
    if action == "clear":
        if subject not in TABLE.values():
            raise _Refused(f"Unsupported pif name {subject}")
        return Edit(action, subject)
    return Edit(action, TABLE[subject], parse_ports(text, subject, ephemeral))


def apply(edits: Iterable[Edit], tables: Mapping[str, PortTable]) -> dict[str, PortTable]:
    """The tables ("HOST" and "SPLICE") after all edits, for the caller to have; ``tables`` stay as they are.

    PortError, with the lines for stderr, at the first edit that cannot be made.
    """
    before = {name: frozenset(table.rules) for name, table in tables.items()}
    after = {name: table.copy() for name, table in tables.items()}
    replaced: set[str] = set()
    for edit in edits:
        table = after[edit.table]
        if edit.action == "clear" or (edit.action == "replace" and edit.table not in replaced):
            table.clear()
            replaced.add(edit.table)
        if edit.spec is None:
            continue
        if edit.action == "delete":
            table.remove(edit.spec)
        else:
            table.extend(edit.spec, present=before[edit.table] if edit.action == "add" else frozenset())
    return after
