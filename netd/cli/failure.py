"""The one exception that ends a command: a line for the person, maybe a hint, exit code 125 (podman's)."""

from __future__ import annotations

import sys

EXIT_FAILED = 125


class Failure(Exception):
    """``str(f)`` is one line; ``code`` is the API's name for it, or empty."""

    def __init__(self, message: str, hint: str = "", code: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.code = code


def complain(failure: Failure) -> None:
    """Print it as every command does."""
    sys.stdout.flush()
    print(f"Error: {failure}", file=sys.stderr)
    if failure.hint:
        print(f"hint: {failure.hint}", file=sys.stderr)
