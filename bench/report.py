"""The results: a table for people, JSON for programs, a picture of the ratios."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.rows import HIGHER, Row, Table

NAMES = ("netd", "slirp4netns", "pasta")
PEERS = NAMES[1:]


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


def ratio(row: Row, mine: float | None, theirs: float | None) -> float | None:
    """How many times better ``mine`` is, 1 where they are equal; None where one is missing or a zero forbids it."""
    if mine is None or theirs is None:
        return None
    if mine == theirs:
        return 1.0
    above, below = (mine, theirs) if row.better == HIGHER else (theirs, mine)
    return above / below if below else None


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
        ratios = [ratio(row, medians["netd"], medians[peer]) for peer in PEERS]
        known = [r for r in ratios if r is not None]
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
                "ratio_to_best": _rounded(min(known)) if known else None,
                "spread": {name: [_rounded(v) for v in values] for name, values in spread.items()},
                "remarks": remarks,
            }
        )
    return {**about, "rows": out}


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
    return "\n".join(lines) + "\n"


def chart(rows: Sequence[Row], table: Table, about: dict[str, Any]) -> str:
    """An SVG of both ratios per row on a logarithmic axis; right of the middle line netd is better."""
    bars = [(row, [ratio(row, table.median(row.key, "netd"), table.median(row.key, p)) for p in PEERS]) for row in rows]
    bars = [(row, ratios) for row, ratios in bars if any(ratios)]
    left, width, step, top = 540, 520, 26, 60
    limit = 32.0
    middle = left + width / 2

    def x(value: float) -> float:
        return middle + math.log(min(limit, max(1 / limit, value)), limit) * width / 2

    height = top + step * len(bars) + 30
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 60}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="white"/><text x="10" y="20" font-size="15">How many times better netd '
        f"is than slirp4netns (dark) and pasta (light), {about['date']}</text>",
    ]
    for tick in (1 / 16, 1 / 4, 1, 4, 16):
        label = f"{tick:g}×" if tick >= 1 else f"1/{1 / tick:g}"
        colour = "#000" if tick == 1 else "#ccc"
        out.append(
            f'<line x1="{x(tick):.0f}" x2="{x(tick):.0f}" y1="{top - 12}" y2="{height - 20}" stroke="{colour}"/>'
            f'<text x="{x(tick):.0f}" y="{top - 18}" text-anchor="middle">{label}</text>'
        )
    for i, (row, ratios) in enumerate(bars):
        y = top + i * step
        out.append(f'<text x="{left - 40}" y="{y + 14}" text-anchor="end">{_escaped(row.title)}</text>')
        for j, value in enumerate(ratios):
            if value:
                a, b = sorted((middle, x(value)))
                fill = (("#1f5fa8", "#8fb8e6") if value >= 1 else ("#a8321f", "#e6a38f"))[j]
                out.append(
                    f'<rect x="{a:.1f}" y="{y + 2 + 10 * j}" width="{max(1, b - a):.1f}" height="9" fill="{fill}"/>'
                    f'<text x="{b + 4 if value >= 1 else a - 4:.1f}" y="{y + 10 + 10 * j}" font-size="9" '
                    f'text-anchor="{"start" if value >= 1 else "end"}">{number(value)}</text>'
                )
    return "\n".join([*out, "</svg>"]) + "\n"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def write(folder: Path, rows: Sequence[Row], table: Table, about: dict[str, Any]) -> None:
    (folder / "RESULTS.md").write_text(markdown(rows, table, about))
    (folder / "latest.json").write_text(json.dumps(document(rows, table, about), indent=1, ensure_ascii=False) + "\n")
    (folder / "latest.svg").write_text(chart(rows, table, about))


def today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())
