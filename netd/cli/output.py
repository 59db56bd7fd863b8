"""How lists are shown: a table, ids alone, JSON, or a template. podman's manners."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence

from netd.cli.failure import Failure
from netd.cli.template import Template

TYPE_CHECKING = False  # importing typing would cost every command 2 ms
if TYPE_CHECKING:
    from typing import Any

MIN_COLUMN = 12  # podman's tables
GAP = 2

Row = dict[str, "Any"]


def list_options(parser: ArgumentParser, filters: Sequence[str]) -> None:
    """The options every list has."""
    parser.add_argument("-f", "--filter", action="append", default=[], metavar="KEY=VALUE",
                        help="show only what fits; keys: " + ", ".join(filters))  # fmt: skip
    format_option(parser)
    parser.add_argument("-n", "--noheading", action="store_true", help="no column headings")
    parser.add_argument("-q", "--quiet", action="store_true", help="ids only")


def format_option(parser: ArgumentParser) -> None:
    """``--format``."""
    parser.add_argument(
        "--format", metavar="FORMAT", help="json, or a Go template such as '{{.ID}}' or 'table {{.ID}}'"
    )


def show_list(args: Namespace, rows: list[Row], columns: dict[str, Callable[[Row], str]]) -> None:
    """Print ``rows`` as the options ask. ``columns`` is the table: heading to cell."""
    if args.quiet:
        for row in rows:
            print(row["id"])
    elif args.format is None:
        table([list(columns)] if not args.noheading else [], [[cell(row) for cell in columns.values()] for row in rows])
    elif args.format == "json":
        show_json(rows)
    else:
        template = Template(args.format)
        lines = [template.render(row) for row in rows]
        if template.table:
            heading = [] if args.noheading else [template.heading]
            table(heading, [line.split("\t") for line in lines])
        else:
            for line in lines:
                print(line)


def show_json(value: Any) -> None:
    """Indented JSON."""
    json.dump(value, sys.stdout, indent=4, ensure_ascii=False)
    print()


def table(heading: list[list[str]], rows: Iterable[list[str]]) -> None:
    """Columns, aligned."""
    lines = heading + list(rows)
    widths: list[int] = []
    for line in lines:
        for index, cell in enumerate(line):
            if index == len(widths):
                widths.append(MIN_COLUMN)
            widths[index] = max(widths[index], len(cell) + GAP)
    for line in lines:
        print("".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip())


def parse_filters(given: Iterable[str], known: Sequence[str]) -> dict[str, list[str]]:
    """``["a=1", "a=2"]`` as ``{"a": ["1", "2"]}``; a key that is not ``known`` is a Failure."""
    filters: dict[str, list[str]] = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise Failure(f"{item!r} is not a filter", "a filter is KEY=VALUE")
        if key not in known:
            raise Failure(f"{key} is an invalid filter", "filters: " + ", ".join(known))
        filters.setdefault(key, []).append(value)
    return filters
