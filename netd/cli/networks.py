"""attach, detach, ps, inspect, info, version: the commands about the daemon and its networks."""

from __future__ import annotations

import json
import os
import re
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from netd import __version__
from netd.cli.client import Client, network_target
from netd.cli.failure import EXIT_FAILED, Failure, complain
from netd.cli.output import Row, format_option, list_options, parse_filters, show_json, show_list
from netd.cli.publish import parse_all, summary
from netd.cli.template import Template

TYPE_CHECKING = False  # importing typing would cost every command 2 ms
if TYPE_CHECKING:
    from typing import Any

PS_FILTERS = ("id", "lifeline", "name", "origin", "port")
PORTS_WIDTH = 60  # of the PORTS column, unless --no-trunc


def configure_attach(parser: ArgumentParser) -> None:
    parser.add_argument("target", metavar="PID|NETNS_PATH", help="a process in the namespace, or the namespace's file")
    parser.add_argument("--name", default="", help="default: the id")
    parser.add_argument("-p", "--publish", action="append", default=[], metavar="SPEC",
                        help="[[IP:][HOSTPORT]:]CONTAINERPORT[/PROTO]; may be repeated")  # fmt: skip
    parser.add_argument("--ifname", help="interface in the namespace (default tap0)")
    parser.add_argument("--mtu", type=int, help="default 65520; below 1280 there is no IPv6")
    parser.add_argument("--cidr", help="IPv4 network (default 10.0.2.0/24)")
    parser.add_argument("--cidr6", help="IPv6 network, a /64 (default: a random unique local one)")
    parser.add_argument("-4", "--ipv4-only", action="store_true", help="no IPv6 in there")
    parser.add_argument("--allow-host-loopback", action="store_true", help="let the gateway address reach 127.0.0.1")
    parser.add_argument("--lifeline", choices=("pidfd", "path", "explicit"), help="what ends the network")


def attach(args: Namespace, client: Client) -> int:
    """Attach a namespace and print the network's id."""
    wanted: dict[str, Any] = {"name": args.name, "ports": parse_all(args.publish)}
    if args.target.isascii() and args.target.isdecimal():
        wanted["pid"] = int(args.target)
    else:
        wanted["netns"] = os.path.abspath(args.target)
    for key in ("ifname", "mtu", "cidr", "cidr6", "lifeline"):
        if (value := getattr(args, key)) is not None:
            wanted[key] = value
    if args.ipv4_only:
        wanted["ipv6"] = False
    if args.allow_host_loopback:
        wanted["allow_host_loopback"] = True
    print(client.post("/v1/networks", wanted)["id"])
    return 0


def configure_detach(parser: ArgumentParser) -> None:
    parser.add_argument("networks", metavar="ID", nargs="*", help="id, unique id prefix, or name")
    parser.add_argument("-a", "--all", action="store_true", help="every network")
    parser.add_argument("-i", "--ignore", action="store_true", help="what is not there counts as detached")


def detach(args: Namespace, client: Client) -> int:
    """Detach networks, printing each that is."""
    if args.all == bool(args.networks):
        raise Failure("give the networks to detach, or --all")
    refs = [network["id"] for network in client.networks()] if args.all else args.networks
    query = "?ignore=true" if args.ignore or args.all else ""

    def one(ref: str) -> None:
        client.delete(network_target(ref) + query)
        print(ref)

    return each(refs, one)


def configure_ps(parser: ArgumentParser) -> None:
    list_options(parser, PS_FILTERS)
    parser.add_argument("--no-trunc", action="store_true", help="show all ports")


def ps(args: Namespace, client: Client) -> int:
    """List the attached networks."""
    filters = parse_filters(args.filter, PS_FILTERS)
    patterns = [_pattern(value) for value in filters.pop("name", [])]  # a regular expression, as podman has it
    rows = client.networks(filters)
    if patterns:
        rows = [row for row in rows if any(pattern.search(row["name"]) for pattern in patterns)]

    def ports(row: Row) -> str:
        text = summary(row["ports"])
        return text if args.no_trunc or len(text) <= PORTS_WIDTH else text[: PORTS_WIDTH - 3] + "..."

    show_list(
        args,
        rows,
        {
            "NETWORK ID": lambda row: row["id"],
            "NAME": lambda row: row["name"],
            "ADDRESS": lambda row: row["guest_ip"],
            "IPV6 ADDRESS": lambda row: row.get("guest_ip6", ""),
            "ORIGIN": lambda row: row["origin"],
            "CREATED": lambda row: ago(row["created_at"]),
            "FLOWS": lambda row: str(sum(row["flows"].values())),
            "PORTS": ports,
        },
    )
    return 0


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as exc:
        raise Failure(f"the name {text!r} is not a regular expression: {exc}") from None


def configure_inspect(parser: ArgumentParser) -> None:
    parser.add_argument("networks", metavar="ID", nargs="+", help="id, unique id prefix, or name")
    format_option(parser)


def inspect(args: Namespace, client: Client) -> int:
    """Show networks whole; always an array."""
    template = None if args.format in (None, "json") else Template(args.format)
    found: list[Row] = []
    status = each(args.networks, lambda ref: found.append(client.network(ref)))
    if template is None:
        show_json(found)
    else:
        for row in found:
            print(template.render(row))
    return status


def configure_info(parser: ArgumentParser) -> None:
    format_option(parser)


def info(args: Namespace, client: Client) -> int:
    """Show the daemon at a glance."""
    show_document(args.format, {**client.get("/v1/info"), "socket": client.path})
    return 0


def configure_version(parser: ArgumentParser) -> None:
    format_option(parser)


def version(args: Namespace, client: Client) -> int:
    """Show the versions of this command and, if it runs, of the daemon."""
    try:
        server = client.get("/v1/version")
    except Failure as exc:
        if exc.code != "not_running":
            raise
        server = None
    if args.format is not None:
        show_document(args.format, {"client": {"version": __version__, "api_version": "1"}, "server": server})
        return 0
    for title, what in (("Client", {"version": __version__, "api_version": "1"}), ("Server", server)):
        if what is not None:
            print(f"{title}:\n  Version:      {what['version']}\n  API Version:  {what['api_version']}")
    return 0


def show_document(format: str | None, document: Row) -> None:
    """One object: ``key: value`` lines, JSON, or a template."""
    if format == "json":
        show_json(document)
    elif format is not None:
        print(Template(format).render(document))
    else:
        for key, value in document.items():
            print(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")


def each(refs: list[str], act: Callable[[str], None]) -> int:
    """Do ``act`` for all, complain of those that fail; the exit status."""
    status = 0
    for ref in refs:
        try:
            act(ref)
        except Failure as exc:
            if exc.code in ("not_running", "timeout", "forbidden"):
                raise
            complain(exc)
            status = EXIT_FAILED
    return status


def ago(created: str) -> str:
    """``2026-01-31T12:00:00.000Z`` in podman's words: "5 minutes ago" (docker's units.HumanDuration)."""
    import calendar

    seconds = time.time() - calendar.timegm(time.strptime(created[:19], "%Y-%m-%dT%H:%M:%S"))
    minutes, hours = int(seconds // 60), round(seconds / 3600)
    if seconds < 1:
        return "Less than a second ago"
    for limit, text in (
        (seconds < 2, "1 second"),
        (seconds < 60, f"{int(seconds)} seconds"),
        (minutes == 1, "About a minute"),
        (minutes < 46, f"{minutes} minutes"),
        (hours <= 1, "About an hour"),
        (hours < 48, f"{hours} hours"),
        (hours < 24 * 14, f"{hours // 24} days"),
        (hours < 24 * 60, f"{hours // 168} weeks"),
        (hours < 24 * 365 * 2, f"{hours // 720} months"),
    ):
        if limit:
            return f"{text} ago"
    return f"{hours // 8760} years ago"
