"""The picture of the ratios: SVG, and PNG where rsvg-convert is installed."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.rows import Row, Table
from bench.targets import PEERS, ratio


def write(path: Path, rows: Sequence[Row], table: Table, about: dict[str, Any]) -> None:
    """``path`` (an SVG), and the PNG beside it; an older PNG does not outlive a failure to make this one."""
    path.write_text(svg(rows, table, about))
    picture = path.with_suffix(".png")
    picture.unlink(missing_ok=True)
    try:
        command = ["rsvg-convert", "--output", str(picture), str(path)]
        subprocess.run(command, check=True, timeout=60, capture_output=True)
    except FileNotFoundError:
        print("bench: no PNG, only the SVG: rsvg-convert is missing (Debian: librsvg2-bin)", file=sys.stderr)
    except (OSError, subprocess.SubprocessError) as e:
        print(f"bench: no PNG, only the SVG: {e}", file=sys.stderr)


def svg(rows: Sequence[Row], table: Table, about: dict[str, Any]) -> str:
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
                    f'text-anchor="{"start" if value >= 1 else "end"}">{value:.3g}</text>'
                )
    return "\n".join([*out, "</svg>"]) + "\n"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
