"""Completion: thin scripts for the shells, which ask ``netd __complete WORD…`` what could stand at the cursor."""

from __future__ import annotations

from argparse import REMAINDER, Action, ArgumentParser, Namespace

from netd.cli.client import Client, socket_path
from netd.cli.command import COMMANDS, Parser, command_parser, split_global, top_parser, visible_commands
from netd.cli.failure import Failure

BASH = r"""# bash completion for netd: source <(netd completion bash)
_netd() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("$line")
    done < <(netd __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _netd netd
"""

ZSH = r"""#compdef netd
# zsh completion for netd: source <(netd completion zsh), or a file named _netd on $fpath
_netd() {
    local -a found
    found=("${(@f)$(netd __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    found=(${found:#})
    if (( ${#found} )); then compadd -- "${found[@]}"; else _files; fi
}
if [ "${funcstack[1]}" = "_netd" ]; then _netd "$@"; else compdef _netd netd; fi
"""

FISH = r"""# fish completion for netd: netd completion fish | source
function __netd_complete
    set -l words (commandline -opc) (commandline -ct)
    netd __complete -- $words[2..-1] 2>/dev/null
end
complete -c netd -a '(__netd_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
_NETWORKS = {"detach", "inspect", "port", "port add", "port rm", "port ls"}  # whose first argument is a network


def configure_completion(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(SCRIPTS))


def completion(args: Namespace) -> int:
    """Print the script."""
    print(SCRIPTS[args.shell], end="")
    return 0


def configure_complete(parser: ArgumentParser) -> None:
    parser.add_argument("words", nargs=REMAINDER)


def complete(args: Namespace) -> int:
    """Print what could take the place of the last of the words after ``netd``, one candidate a line."""
    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    *before, current = words or [""]
    for candidate in candidates(before, current, args.url):
        if candidate.startswith(current):
            print(candidate)
    return 0


def candidates(before: list[str], current: str, url: str | None) -> list[str]:
    """Everything that may stand after ``before``."""
    options, rest = split_global(before)
    if not rest:
        parser = top_parser()
        if values := _values_of(parser, options):
            return values
        return _options(parser) if current.startswith("-") else list(visible_commands())
    name, *words = rest
    if words and f"{name} {words[0]}" in COMMANDS:
        name = f"{name} {words.pop(0)}"
    if name not in COMMANDS:
        return []
    parser = command_parser(name)
    if values := _values_of(parser, words):
        return values
    if current.startswith("-"):
        return _options(parser)
    places = _positionals(parser, words)
    found = [n.removeprefix("port ") for n in COMMANDS if n.startswith("port ")] if name == "port" and not words else []
    if name in _NETWORKS and (places == 0 or name in ("detach", "inspect")):
        found += _network_names(url)
    elif name == "port rm":
        found += _port_names(url, next(word for word in words if not word.startswith("-")))
    elif name == "completion" and places == 0:
        found += list(SCRIPTS)
    return found


def _options(parser: Parser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings if option.startswith("--")]


def _values_of(parser: Parser, words: list[str]) -> list[str]:
    """The values of the option that is the last word, where they are few."""
    action: Action | None = parser._option_string_actions.get(words[-1]) if words else None
    if action is None or action.nargs == 0:
        return []
    return [str(choice) for choice in action.choices] if action.choices else ["json"] if action.dest == "format" else []


def _positionals(parser: Parser, words: list[str]) -> int:
    """How many of ``words`` are neither options nor their values."""
    count, skip = 0, False
    for word in words:
        action = parser._option_string_actions.get(word)
        if skip:
            skip = False
        elif action is not None:
            skip = action.nargs is None
        elif not word.startswith("-"):
            count += 1
    return count


def _network_names(url: str | None) -> list[str]:
    try:
        networks = Client(socket_path(url)).networks()
    except Failure:
        return []
    return [name for network in networks for name in {network["name"]: None, network["id"]: None}]


def _port_names(url: str | None, network: str) -> list[str]:
    try:
        ports = Client(socket_path(url)).network(network)["ports"]
    except Failure:
        return []
    return [
        (str(p["host_port"]) if p["range"] == 1 else f"{p['host_port']}-{p['host_port'] + p['range'] - 1}")
        + f"/{p['protocol']}"
        for p in ports
    ]
