"""``netd port``: add, rm, ls, and ``netd port NETWORK`` which prints what ``podman port`` would."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from netd.cli.client import Client, network_target
from netd.cli.failure import Failure
from netd.cli.networks import each
from netd.cli.output import list_options, parse_filters, show_list
from netd.cli.publish import find_port, parse_publish, podman_lines

TYPE_CHECKING = False  # importing typing would cost every command 2 ms
if TYPE_CHECKING:
    from typing import Any

LS_FILTERS = ("container_port", "host_ip", "host_port", "network", "origin", "protocol")


def configure_add(parser: ArgumentParser) -> None:
    parser.add_argument("network", metavar="ID", help="id, unique id prefix, or name")
    parser.add_argument("specs", metavar="SPEC", nargs="+", help="[[IP:][HOSTPORT]:]CONTAINERPORT[/PROTO]")


def add(args: Namespace, client: Client) -> int:
    """Publish ports of a running network; each is printed as it now stands."""
    target = network_target(args.network) + "/ports"
    parsed: dict[str, list[dict[str, Any]]] = {}

    def one(spec: str) -> None:
        for port in parsed[spec]:
            for line in podman_lines([client.post(target, port)]):
                print(line)

    for spec in args.specs:
        parsed[spec] = parse_publish(spec)  # all of them before the first is published
    return each(args.specs, one)


def configure_rm(parser: ArgumentParser) -> None:
    parser.add_argument("network", metavar="ID", help="id, unique id prefix, or name")
    parser.add_argument("ports", metavar="PORT", nargs="+", help="HOSTPORT[/PROTO], or the forward's id")
    parser.add_argument("--close", action="store_true", help="end established connections as well")
    parser.add_argument("-i", "--ignore", action="store_true", help="what is not there counts as removed")


def rm(args: Namespace, client: Client) -> int:
    """Unpublish ports; established connections stay unless --close."""
    target = network_target(args.network) + "/ports"
    ports = client.get(target)

    def one(text: str) -> None:
        try:
            port = find_port(ports, text)
            client.delete(f"{target}/{port['id']}" + ("?close=true" if args.close else ""))
        except Failure as exc:
            if not (args.ignore and exc.code == "no_such_port"):
                raise
        print(text)

    return each(args.ports, one)


def configure_ls(parser: ArgumentParser) -> None:
    parser.add_argument("network", metavar="ID", nargs="?", help="default: all networks")
    list_options(parser, LS_FILTERS)


def ls(args: Namespace, client: Client) -> int:
    """List published ports."""
    filters = parse_filters(args.filter, LS_FILTERS)
    networks = [client.network(args.network)] if args.network else client.networks()
    rows = [
        {**port, "network": network["name"], "network_id": network["id"]}
        for network in networks
        for port in network["ports"]
    ]
    rows = [row for row in rows if all(str(row[key]) in values for key, values in filters.items())]

    def span(row: dict[str, Any], key: str) -> str:
        last = row[key] + row["range"] - 1
        return str(row[key]) if row["range"] == 1 else f"{row[key]}-{last}"

    show_list(
        args,
        rows,
        {
            "NETWORK": lambda row: row["network"],
            "PORT ID": lambda row: str(row["id"]),
            "HOST IP": lambda row: row["host_ip"] or "0.0.0.0",
            "HOST PORT": lambda row: span(row, "host_port"),
            "CONTAINER PORT": lambda row: span(row, "container_port"),
            "PROTOCOL": lambda row: row["protocol"],
            "ORIGIN": lambda row: row["origin"],
            "CONNECTIONS": lambda row: str(row["connections"]),
        },
    )
    return 0


def configure_show(parser: ArgumentParser) -> None:
    parser.add_argument("network", metavar="ID", nargs="?", help="id, unique id prefix, or name")
    parser.add_argument(
        "port", metavar="PORT", nargs="?", default="", help="CONTAINERPORT[/PROTO]: its addresses alone"
    )
    parser.add_argument("-a", "--all", action="store_true", help="all networks")
    parser.epilog = "also: netd port add | rm | ls"


def show(args: Namespace, client: Client) -> int:
    """Print published ports as ``podman port`` does."""
    if args.all:
        if args.network:
            raise Failure("--all and a network do not go together")
        for network in client.networks():
            for line in podman_lines(network["ports"]):
                print(f"{network['id'][:12]}\t{line}")
        return 0
    if not args.network:
        raise Failure("you must supply a network's name or id", "or: netd port add | rm | ls")
    number, _, protocol = args.port.partition("/")
    if args.port and not (number.isascii() and number.isdecimal() and protocol in ("", "tcp", "udp")):
        raise Failure(f"port formats are port/protocol. '{args.port}' is invalid")
    for line in podman_lines(client.get(network_target(args.network) + "/ports"), args.port):
        print(line)
    return 0
