"""The picture: well formed, and PNG where there is a tool for it."""

import shutil
import xml.etree.ElementTree

import pytest

from bench import chart
from bench.rows import HIGHER, LOWER, Row, Table

ROWS = [Row("fast", "a < b & c", "Gbit/s", HIGHER), Row("late", "delay", "ms", LOWER)]
ABOUT = {"date": "2026-01-02"}


@pytest.fixture
def table():
    return Table({("fast", "netd"): [8.0], ("fast", "pasta"): [4.0], ("late", "netd"): [0.0], ("late", "pasta"): [1.0]})


def test_the_chart_is_well_formed_whatever_the_titles(table):
    root = xml.etree.ElementTree.fromstring(chart.svg(ROWS, table, ABOUT))
    assert any("a < b & c" in (element.text or "") for element in root.iter())


def test_a_png_beside_the_svg(tmp_path, table):
    if shutil.which("rsvg-convert") is None:
        pytest.skip("needs rsvg-convert (Debian: librsvg2-bin)")
    chart.write(tmp_path / "latest.svg", ROWS, table, ABOUT)
    assert (tmp_path / "latest.png").read_bytes().startswith(b"\x89PNG")


def test_without_the_tool_it_says_so_and_leaves_no_older_picture(tmp_path, table, monkeypatch, capsys):
    (tmp_path / "latest.png").write_bytes(b"old")
    monkeypatch.setenv("PATH", str(tmp_path))
    chart.write(tmp_path / "latest.svg", ROWS, table, ABOUT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest.svg"]
    assert "librsvg2-bin" in capsys.readouterr().err
