"""What pesto says, to people and to the programs that search its output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from netd.dialects.pasta import texts as pasta
from netd.specs import PortRule

_HELP = """\
Usage: {argv0} [OPTION]... SOCKET
Show or change the ports of a running network; SOCKET is what pasta's -c names. This is netd's pesto.

  -A, --add                add the SPECs that follow
  -D, --delete             delete the SPECs that follow
  -C, --clear TABLE        empty TABLE: HOST, of -t and -u, or SPLICE, of -T and -U
  -t, --tcp-ports SPEC     TCP ports of the host that lead to the namespace
  -u, --udp-ports SPEC     UDP ports likewise
  -T, --tcp-ns SPEC        TCP ports of the namespace's loopback that lead to the host's
  -U, --udp-ns SPEC        UDP ports likewise
  -s, --show               print the tables, before and after a change
  -d, --debug              accepted, does nothing
  -h, --help               show this help and exit
  --version                show version and exit

Options are carried out in their order. A SPEC with no -A or -D before it replaces what its table has.

{specs}"""


def usage(argv0: str) -> str:
    """The help text, which ``--help`` prints to stdout and a mistake to stderr."""
    return _HELP.format(argv0=argv0, specs=pasta.SPECS)


def version() -> str:
    """In pasta's form."""
    return pasta.version("pesto")


def tables(title: str, socket: str, rules: Mapping[str, Iterable[PortRule]]) -> str:
    """The tables by name. ``title``: "passt/pasta", and where there is a change "Previous" and "Updated"."""
    return f"{title} configuration ({socket})\n" + "".join(
        f"  {name}\n{pasta.rules(table)}" for name, table in rules.items()
    )
