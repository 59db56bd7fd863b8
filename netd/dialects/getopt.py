"""getopt_long(3) as glibc does it: permutation, abbreviations, bundled short options, the same complaints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """One spelling of an option. Spellings with the same ``key`` are the same option to the caller."""

    key: str
    long: str = ""
    short: str = ""
    argument: bool = False


class UsageError(Exception):
    """What getopt_long would print after the program's name, e.g. ``unrecognized option '--foo'``."""


def getopt_long(
    argv: Sequence[str], options: Sequence[Option], positionals: list[str], *, stop_at_first: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield (key, argument) in order of appearance; what is no option goes to ``positionals``, wherever it stands.

    ``stop_at_first`` is glibc's leading "+": the first word that is no option ends them, as ``--`` does.
    UsageError at the first mistake, after everything before it was yielded, so that a caller can act in order.
    """
    shorts = {option.short: option for option in options if option.short}
    words = iter(argv)
    for word in words:
        if word == "--":
            positionals.extend(words)
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            option = _long(name, word, options)
            if equals and not option.argument:
                raise UsageError(f"option '--{option.long}' doesn't allow an argument")
            if option.argument and not equals:
                following = next(words, None)
                if following is None:
                    raise UsageError(f"option '--{option.long}' requires an argument")
                value = following
            yield option.key, value
        elif word.startswith("-") and word != "-":
            yield from _bundle(word[1:], shorts, words)
        else:
            positionals.append(word)
            if stop_at_first:
                positionals.extend(words)


def _long(name: str, word: str, options: Sequence[Option]) -> Option:
    fitting = [option for option in options if option.long and option.long.startswith(name)]
    for option in fitting:
        if option.long == name:
            return option
    if not fitting:
        raise UsageError(f"unrecognized option '{word}'")
    if any((option.key, option.argument) != (fitting[0].key, fitting[0].argument) for option in fitting):
        possibilities = " ".join(f"'--{option.long}'" for option in fitting)
        raise UsageError(f"option '{word}' is ambiguous; possibilities: {possibilities}")
    return fitting[0]


def _bundle(letters: str, shorts: dict[str, Option], words: Iterator[str]) -> Iterator[tuple[str, str]]:
    for at, letter in enumerate(letters):
        option = shorts.get(letter)
        if option is None:
            raise UsageError(f"invalid option -- '{letter}'")
        if not option.argument:
            yield option.key, ""
            continue
        rest = letters[at + 1 :]
        if not rest:
            following = next(words, None)
            if following is None:
                raise UsageError(f"option requires an argument -- '{letter}'")
            rest = following
        yield option.key, rest
        return
