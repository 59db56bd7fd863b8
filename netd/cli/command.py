"""The command line: global options, then one command, whose module is imported only when it is called for."""

from __future__ import annotations

import os
import sys
from argparse import Action, ArgumentParser, HelpFormatter, Namespace, RawDescriptionHelpFormatter
from importlib import import_module

from netd import __version__
from netd.cli.failure import EXIT_FAILED, Failure, complain

TYPE_CHECKING = False  # importing typing would cost every command 2 ms
if TYPE_CHECKING:
    from typing import NoReturn

EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
LOG_LEVELS = ("debug", "info", "warn", "warning", "error")

# name: (module:function, what it does). The module has ``function(args, …)`` and ``configure_function(parser)``.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run:run", "Run a command in a network namespace of its own"),
    "serve": ("serving:serve", "Run the daemon in the foreground"),
    "attach": ("networks:attach", "Attach a network namespace"),
    "detach": ("networks:detach", "Detach networks"),
    "ps": ("networks:ps", "List attached networks"),
    "inspect": ("networks:inspect", "Show networks whole, as JSON"),
    "port": ("ports:show", "List a network's published ports (also: port add, rm, ls)"),
    "port add": ("ports:add", "Publish ports of a running network"),
    "port rm": ("ports:rm", "Unpublish ports"),
    "port ls": ("ports:ls", "List published ports"),
    "info": ("networks:info", "Show the daemon at a glance"),
    "version": ("networks:version", "Show versions"),
    "completion": ("completion:completion", "Print the completion script for bash, zsh or fish"),
    "__complete": ("completion:complete", ""),
}


def visible_commands() -> dict[str, str]:
    """The commands of the first level and what they do."""
    return {name: summary for name, (_, summary) in COMMANDS.items() if summary and " " not in name}


def _formatter(prog: str) -> HelpFormatter:
    # argparse makes one for every option and would import shutil to learn the terminal's width.
    try:
        width = os.get_terminal_size().columns
    except OSError:
        width = 100
    return RawDescriptionHelpFormatter(prog, width=width)


class Parser(ArgumentParser):
    """argparse with podman's manners: errors are a Failure, no abbreviations."""

    def __init__(self, prog: str, description: str, usage: str | None = None) -> None:
        super().__init__(
            prog=prog, description=description, usage=usage, allow_abbrev=False, formatter_class=_formatter
        )

    def error(self, message: str) -> NoReturn:
        raise Failure(message, f"see `{self.prog} --help`")


def top_parser() -> Parser:
    """The options before the command."""
    parser = Parser("netd", _overview(), "netd [options] COMMAND …")
    parser.add_argument("--url", metavar="URL", help="the API's socket, unix:///path (or NETD_HOST)")
    parser.add_argument("--log-level", choices=LOG_LEVELS, metavar="LEVEL", help=", ".join(LOG_LEVELS))
    parser.add_argument("-v", "--version", action="version", version=f"netd version {__version__}")
    return parser


def command_parser(name: str) -> Parser:
    """The parser of one command."""
    place, summary = COMMANDS[name]
    module, _, function = place.partition(":")
    parser = Parser(f"netd {name}", summary)
    getattr(import_module(f"netd.cli.{module}"), f"configure_{function}")(parser)
    return parser


def _overview() -> str:
    lines = [f"  {name:<12}{summary}" for name, summary in visible_commands().items()]
    return "Networks of rootless containers.\n\ncommands:\n" + "\n".join(lines)


def split_global(argv: list[str]) -> tuple[list[str], list[str]]:
    """The words before the command, and from the command on."""
    parser = top_parser()
    at = 0
    while at < len(argv) and argv[at].startswith("-"):
        action: Action | None = parser._option_string_actions.get(argv[at])
        takes_value = action is not None and action.nargs is None
        at += 2 if takes_value else 1
    return argv[:at], argv[at:]


def main(argv: list[str] | None = None) -> int:
    """The whole command; the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    before, words = split_global(argv)
    debug = "--log-level=debug" in before or "--log-level debug" in " ".join(before)
    try:
        try:
            return _dispatch(before, words)
        finally:
            sys.stdout.flush()
    except Failure as failure:
        if debug:
            raise
        complain(failure)
        return EXIT_FAILED
    except BrokenPipeError:  # our reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as exc:
        if debug:
            raise
        complain(Failure(f"netd made a mistake: {type(exc).__name__}: {exc}", "--log-level debug shows where"))
        return EXIT_FAILED


def _dispatch(before: list[str], words: list[str]) -> int:
    top = top_parser().parse_args(before)
    if not words:
        raise Failure("missing command 'netd COMMAND'", "see `netd --help`")
    name = words.pop(0)
    if name == "help":
        (command_parser(words[0]) if words and words[0] in COMMANDS else top_parser()).print_help()
        return 0
    if name not in COMMANDS or " " in name:
        raise Failure(f"unrecognized command `netd {name}`", "see `netd --help`")
    if words and f"{name} {words[0]}" in COMMANDS:
        name = f"{name} {words.pop(0)}"
    args = _parse(name, words)
    args.url, args.log_level = top.url, top.log_level
    module, _, function = COMMANDS[name][0].partition(":")
    act = getattr(import_module(f"netd.cli.{module}"), function)
    if module in ("networks", "ports"):
        from netd.cli.client import Client, socket_path

        return int(act(args, Client(socket_path(args.url))))
    return int(act(args))


def _parse(name: str, words: list[str]) -> Namespace:
    parser = command_parser(name)
    if name in ("run", "__complete"):  # the rest is another command's
        return parser.parse_args(words)
    return parser.parse_intermixed_args(words)
