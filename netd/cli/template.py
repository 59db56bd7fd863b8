"""The part of Go's text/template that people use with podman's ``--format``, over the API's JSON.

``{{.A.B}}``, ``{{json .A}}``, ``{{len .A}}``, ``{{range .A}}…{{end}}``, ``table {{.A}}\\t{{.B}}``; ``\\t`` and ``\\n``
may be written as such. Field names are Go's (``.HostIP``) for the API's (``host_ip``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable

from netd.cli.failure import Failure
from netd.cli.publish import summary

TYPE_CHECKING = False  # importing typing would cost every command 2 ms
if TYPE_CHECKING:
    from typing import Any

_INITIALISMS = {"id", "ip", "ip6", "dns", "mtu", "mac", "cidr", "cidr6", "api", "pid", "uid"}
_ACTION = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)
_PATH = re.compile(r"\.|(\.\w+)+")

Node = Callable[["Any"], str]


def go_name(key: str) -> str:
    """``host_ip`` as ``HostIP``."""
    return "".join(part.upper() if part in _INITIALISMS else part.capitalize() for part in key.split("_"))


class Template:
    """A parsed ``--format``. Failure for what is not in the subset."""

    def __init__(self, text: str) -> None:
        text = text.replace("\\t", "\t").replace("\\n", "\n")
        self.table = text.startswith("table")
        if self.table:
            text = text.removeprefix("table").lstrip()
        self._tokens = _ACTION.split(text)  # text and actions in turn
        self._at = 0
        self.headers: list[str] = []
        self._nodes = self._sequence(inside_range=False)
        self.heading = "".join(
            token if index % 2 == 0 else _heading(token) for index, token in enumerate(self._tokens)
        ).split("\t")

    def render(self, row: Any) -> str:
        """``row`` in this format, without a newline at its end."""
        return "".join(node(row) for node in self._nodes)

    def _sequence(self, inside_range: bool) -> list[Node]:
        nodes: list[Node] = []
        while self._at < len(self._tokens):
            token, is_action = self._tokens[self._at], self._at % 2 == 1
            self._at += 1
            if not is_action:
                nodes.append(lambda _, text=token: text)  # type: ignore[misc]
            elif token == "end" and inside_range:
                return nodes
            else:
                nodes.append(self._action(token))
        if inside_range:
            raise Failure("the template has a {{range}} without {{end}}")
        return nodes

    def _action(self, token: str) -> Node:
        verb, _, path = token.rpartition(" ")
        verb = verb.strip()
        if not _PATH.fullmatch(path) or verb not in ("", "json", "len", "range"):
            raise Failure(
                f"the template action {{{{{token}}}}} is not supported",
                "there are {{.Field}}, {{json .Field}}, {{len .Field}} and {{range .Field}}…{{end}}",
            )
        if verb == "json":
            return lambda row: json.dumps(_at(row, path), separators=(",", ":"))
        if verb == "len":
            return lambda row: str(len(_sized(row, path)))
        if verb == "range":
            body = self._sequence(inside_range=True)
            return lambda row: "".join(node(item) for item in _items(row, path) for node in body)
        return lambda row: _text(_at(row, path))


def _at(row: Any, path: str) -> Any:
    for name in path.split("."):
        if not name:
            continue
        keys = {key.replace("_", "").lower(): key for key in row} if isinstance(row, dict) else {}
        key = keys.get(name.replace("_", "").lower())
        if key is None:
            valid = " ".join("." + go_name(key) for key in row) if isinstance(row, dict) else "none"
            raise Failure(f"the template's field {path} is unknown", f"valid fields: {valid}")
        row = row[key]
    return row


def _sized(row: Any, path: str) -> Any:
    value = _at(row, path)
    if not isinstance(value, dict | list | str):
        raise Failure(f"the template's field {path} has no length")
    return value


def _items(row: Any, path: str) -> Iterable[Any]:
    value = _at(row, path)
    if not isinstance(value, dict | list):
        raise Failure(f"the template cannot range over {path}")
    return value.values() if isinstance(value, dict) else value


def _text(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case None:
            return "<nil>"
        case list() if value and all(isinstance(item, dict) and "host_port" in item for item in value):
            return summary(value)
        case list():
            return "[" + " ".join(_text(item) for item in value) + "]" if value else ""
        case dict():
            return "map[" + " ".join(f"{key}:{_text(item)}" for key, item in sorted(value.items())) + "]"
    return str(value)


def _heading(token: str) -> str:
    """The column's title for an action: ``.HostPort`` is HOST PORT."""
    last = token.rpartition(".")[2]
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", last).replace("_", " ").upper()
