"""What netd is to reach, row by row (issue 3, "Must be shown" 1 and 4), and whether a run reached it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.rows import HIGHER, Row, Table

MOST = 1000.0  # a ratio that a zero makes infinite


def ratio(row: Row, mine: float | None, theirs: float | None) -> float | None:
    """How many times better ``mine`` is, 1 where they are equal, MOST at most; None where one is missing."""
    if mine is None or theirs is None:
        return None
    if mine == theirs:
        return 1.0
    above, below = (mine, theirs) if row.better == HIGHER else (theirs, mine)
    return max(min(MOST, above / below), 0.0) if below > 0 else MOST  # a slope within the noise may be negative


@dataclass(frozen=True)
class Target:
    """netd's median of ``row`` is at least ``times`` as good as that of ``than``, or at most ``limit``.

    ``than`` is a peer's name, or the key of another of netd's own rows.
    """

    row: str
    than: str = ""
    times: float = 1.0
    limit: float = 0.0


@dataclass(frozen=True)
class Verdict:
    row: Row
    wanted: str
    measured: float | None
    met: bool
    at_worst: float | None = None  # against the peer's best sample instead of its median

    def json(self) -> dict[str, Any]:
        return {"row": self.row.title, "key": self.row.key, "target": self.wanted, "measured": self.measured,
                "met": self.met, "at_worst": self.at_worst}  # fmt: skip


def _both(key: str, slirp4netns: float, pasta: float) -> tuple[Target, Target]:
    return Target(key, "slirp4netns", slirp4netns), Target(key, "pasta", pasta)


TARGETS: tuple[Target, ...] = (
    Target("bulk_out_1500", "slirp4netns", 6),
    Target("bulk_in_1500", "slirp4netns", 4),
    *_both("bulk_out_65520", 3, 1.2),
    *_both("bulk_in_65520", 3, 1.2),
    Target("bulk_published_loopback_1500", "pasta"),
    Target("bulk_published_loopback_65520", "pasta"),
    *_both("rr_out_p50", 1 / 0.6, 1),
    *_both("connect_out", 1, 1),
    *_both("connect_published", 1, 1),
    *_both("connect_published_16", 1, 1),
    Target("connect_published_16_max", limit=100),
    Target("rr_idle_4000", "rr_idle_0", 0.8),
    Target("bulk_idle_4000", "bulk_idle_0", 0.8),
    Target("burst_peak", limit=150),
    Target("udp_free_1400_out", "slirp4netns"),
    Target("udp_free_1400_in", "slirp4netns"),
    Target("pss_one_more", limit=300),
    Target("pss_open_10000", limit=60),
    Target("api_p99_bulk", limit=50),
    Target("api_p99_udp", limit=50),
    Target("neighbour_bulk_ratio", limit=5),
    Target("neighbour_udp_ratio", limit=5),
    Target("neighbour_syn_ratio", limit=5),
    Target("neighbour_open_ratio", limit=5),
)
PEERS = ("slirp4netns", "pasta")


def judge(rows: Sequence[Row], table: Table) -> list[Verdict]:
    """The targets of ``rows``. A target without the figures to decide it is not met."""
    known = {row.key: row for row in rows}
    return [_judge(target, known, table) for target in TARGETS if target.row in known]


def _judge(target: Target, rows: Mapping[str, Row], table: Table) -> Verdict:
    row = rows[target.row]
    mine = table.median(row.key, "netd")
    if not target.than:
        return Verdict(row, f"≤ {target.limit:g} {row.unit}", mine, mine is not None and mine <= target.limit)
    if target.than not in PEERS:
        got = ratio(row, mine, table.median(target.than, "netd"))
        base = rows[target.than].title if target.than in rows else target.than
        return Verdict(row, f"≥ {target.times:.3g} × “{base}”", got, got is not None and got >= target.times)
    got = ratio(row, mine, table.median(row.key, target.than))
    theirs = table.samples.get((row.key, target.than))
    best = (max if row.better == HIGHER else min)(theirs) if theirs else None
    wanted = f"≥ {target.times:.3g} × {target.than}"
    return Verdict(row, wanted, got, got is not None and got >= target.times, ratio(row, mine, best))
