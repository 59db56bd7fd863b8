"""What is measured: rows, the blocks that fill them, and the samples.

A block is one visit to one program under test: fresh guest, fresh program, several rows. ``run.py`` visits the programs
in turn, round after round, so that a slow minute of the machine hits all of them alike.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from bench.programs import Attachment, Program
from bench.world import BenchError, Guest, World

HIGHER, LOWER = "higher", "lower"


@dataclass(frozen=True)
class Row:
    key: str
    title: str
    unit: str
    better: str
    full_only: bool = False


@dataclass
class Table:
    """Samples and failures by (row key, program name)."""

    samples: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    failures: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    congestion: set[str] = field(default_factory=set)  # what iperf3 says its sockets used

    def median(self, row: str, program: str) -> float | None:
        values = self.samples.get((row, program))
        return statistics.median(values) if values else None

    def fail(self, row: str, program: str, why: str) -> None:
        reasons = self.failures.setdefault((row, program), [])
        if why not in reasons:
            reasons.append(why)


class TimeLimit(BenchError):
    """A block took longer than it may."""


@dataclass
class Visit:
    """What a block's function is given: one program, one round."""

    world: World
    program: Program
    table: Table
    quick: bool

    def put(self, row: str, value: float) -> None:
        self.table.samples.setdefault((row, self.program.name), []).append(value)

    def note(self, row: str, remark: str) -> None:
        """A remark on the row that the table prints below."""
        self.table.fail(row, self.program.name, remark)

    def wants(self, row: Row) -> bool:
        return not (self.quick and row.full_only)

    @contextlib.contextmanager
    def row(self, *keys: str) -> Iterator[None]:
        """What goes wrong inside is noted as these rows' failure, and the block goes on."""
        try:
            yield
        except TimeLimit:
            raise
        except (BenchError, OSError, subprocess.SubprocessError) as e:
            for key in keys:
                self.table.fail(key, self.program.name, str(e) or type(e).__name__)

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """The program's own daemon, if it has one, for the length of the block."""
        try:
            self.program.start()
            yield
        finally:
            self.program.stop()

    @contextlib.contextmanager
    def attached(
        self,
        mtu: int,
        tcp: Mapping[int, int] | None = None,
        udp: Mapping[int, int] | None = None,
        ipv6: bool = False,
    ) -> Iterator[Attachment]:
        """One more guest with a network; host port → guest port."""
        guest = Guest(self.world)
        try:
            network = self.program.attach(guest, mtu, tcp or {}, udp or {}, ipv6)
            try:
                yield network
            finally:
                network.close()
        finally:
            guest.close()


@dataclass(frozen=True)
class Block:
    """``measure`` is called rounds × programs times; it may take ``limit`` seconds each time."""

    name: str
    rows: tuple[Row, ...]
    measure: Callable[[Visit], None]
    quick_rounds: int
    full_rounds: int
    limit: float
