"""How a call ends that asks nothing of the daemon, or that it refuses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a call: what to print and the exit status."""

    status: int
    stdout: str = ""
    stderr: str = ""
