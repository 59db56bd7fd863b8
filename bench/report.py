"""The results: a table for people, JSON for programs; the picture is chart.py's."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import chart, targets
from bench.rows import Row, Table
from bench.targets import PEERS, Verdict, ratio

NAMES = ("netd", "slirp4netns", "pasta")


def machine() -> dict[str, Any]:
    """CPU model, number of CPUs, memory in GB, kernel, Python."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024 / 1e9
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def number(value: float | None) -> str:
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def document(rows: Sequence[Row], table: Table, about: dict[str, Any]) -> dict[str, Any]:
    """The form of ``latest.json``."""
    out = []
    for row in rows:
        medians = {name: table.median(row.key, name) for name in NAMES}
        spread = {
            name: [min(values), max(values), len(values)]
            for name in NAMES
            if (values := table.samples.get((row.key, name)))
        }
        remarks = {name: why for name in NAMES if (why := table.failures.get((row.key, name)))}
        out.append(
            {
                "row": row.title,
                "key": row.key,
                "unit": row.unit,
                "better": row.better,
                **{name: _rounded(medians[name]) for name in NAMES},
                "ratio_to_best": _rounded(to_best(row, table)),
                "spread": {name: [_rounded(v) for v in values] for name, values in spread.items()},
                "remarks": remarks,
            }
        )
    verdicts = [verdict.json() for verdict in targets.judge(rows, table)]
    return {**about, "rows": out, "targets": verdicts}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def markdown(rows: Sequence[Row], table: Table, about: dict[str, Any]) -> str:
    m = about["machine"]
    lines = [
        "# Side by side",
        "",
        f"{about['date']}, {about['pass']} pass ({about['minutes']:g} minutes). "
        f"{m['cpu']}, {m['cpus']} CPUs, {m['memory_gb']:g} GB; Linux {m['kernel']}; Python {m['python']}.",
        "",
        *(f"* {name}: {text}" for name, text in about["versions"].items()),
        f"* congestion control of the bulk transfers: {', '.join(about['congestion_control']) or 'none measured'}",
        f"* for scale, one stream between the two hosts without any of them: {number(about['kernel_only'])} Gbit/s",
        *(f"* {remark}" for remark in about["missing"]),
        "",
        "Medians, with the smallest and the largest sample. A ratio says how many times better netd is, whichever way",
        "better is for the row: 1 is equal, below 1 netd is behind. How each row is measured: bench/README.md.",
        "",
        "| | unit | better | netd | slirp4netns | pasta | netd : slirp4netns | netd : pasta |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    notes: list[str] = []
    for row in rows:
        cells = []
        for name in NAMES:
            values = table.samples.get((row.key, name), [])
            cell = number(table.median(row.key, name))
            if len(values) > 1:
                cell = f"**{cell}** [{number(min(values))} … {number(max(values))}]"
            for why in table.failures.get((row.key, name), []):
                note = f"{name}: {why}"
                if note not in notes:
                    notes.append(note)
                cell += f" ({notes.index(note) + 1})"
            cells.append(cell)
        ratios = [number(ratio(row, table.median(row.key, "netd"), table.median(row.key, peer))) for peer in PEERS]
        lines.append(f"| {row.title} | {row.unit} | {row.better} | {' | '.join([*cells, *ratios])} |")
    lines += ["", *(f"{i}. {note}" for i, note in enumerate(notes, 1))] if notes else []
    lines += _targets(targets.judge(rows, table)) + _behind(rows, table)
    return "\n".join(lines) + "\n"


def _targets(verdicts: Sequence[Verdict]) -> list[str]:
    if not verdicts:
        return []
    met = sum(verdict.met for verdict in verdicts)
    lines = [
        "",
        f"## Targets: {met} of {len(verdicts)} met",
        "",
        "Medians decide. “At worst” sets netd's median against the best sample of the peer: where the two columns",
        "differ much, the peer has a slow and a fast state.",
        "",
        "| | target | measured | at worst | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for v in verdicts:
        verdict = "met" if v.met else "**no figure**" if v.measured is None else "**not met**"
        lines.append(f"| {v.row.title} | {v.wanted} | {number(v.measured)} | {number(v.at_worst)} | {verdict} |")
    return lines


def to_best(row: Row, table: Table) -> float | None:
    """netd against the best peer of the row; None where there is none, or no netd."""
    ratios = (ratio(row, table.median(row.key, "netd"), table.median(row.key, peer)) for peer in PEERS)
    return min((r for r in ratios if r is not None), default=None)


def _behind(rows: Sequence[Row], table: Table) -> list[str]:
    """The rows in which a peer is better, the worst first."""
    behind = sorted((r, row.title) for row in rows if (r := to_best(row, table)) is not None and r < 1)
    lines = ["", f"## Behind the best peer: {len(behind)} of {len(rows)} rows", ""]
    return [*lines, *(f"* {number(r)} × {title}" for r, title in behind)] if behind else []


def write(folder: Path, rows: Sequence[Row], table: Table, about: dict[str, Any]) -> None:
    (folder / "RESULTS.md").write_text(markdown(rows, table, about))
    (folder / "latest.json").write_text(json.dumps(document(rows, table, about), indent=1, ensure_ascii=False) + "\n")
    chart.write(folder / "latest.svg", rows, table, about)


def today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())
