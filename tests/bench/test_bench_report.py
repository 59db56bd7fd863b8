"""What the table says: which way a ratio goes, what is missing, what went wrong."""

import json

import pytest

from bench import report
from bench.rows import HIGHER, LOWER, Row, Table

FAST = Row("fast", "speed", "Gbit/s", HIGHER)
LATE = Row("late", "delay", "ms", LOWER)
ABOUT = {
    "machine": {"cpu": "a CPU", "cpus": 2, "memory_gb": 4.0, "kernel": "6.1", "python": "3.11"},
    "versions": {"netd": "netd 1", "pasta": "pasta 2"},
    "date": "2026-01-02",
    "pass": "quick",
    "missing": ["slirp4netns: not installed"],
    "kernel_only": 20.0,
    "minutes": 1.0,
    "congestion_control": ["cubic"],
}


@pytest.fixture
def table():
    table = Table()
    table.samples[("fast", "netd")] = [9.0, 1.0, 8.0]
    table.samples[("fast", "pasta")] = [4.0]
    table.samples[("fast", "slirp4netns")] = [2.0]
    table.samples[("late", "netd")] = [3.0]
    table.samples[("late", "pasta")] = [1.5]
    table.fail("late", "slirp4netns", "no answer")
    return table


def test_json_has_medians_and_the_ratio_to_the_best_peer(table):
    document = json.loads(json.dumps(report.document([FAST, LATE], table, ABOUT)))
    fast, late = document["rows"]
    assert (fast["row"], fast["unit"], fast["better"]) == ("speed", "Gbit/s", "higher")
    assert (fast["netd"], fast["slirp4netns"], fast["pasta"]) == (8.0, 2.0, 4.0)
    assert fast["ratio_to_best"] == 2.0
    assert fast["spread"]["netd"] == [1.0, 9.0, 3]
    assert late["slirp4netns"] is None
    assert late["ratio_to_best"] == 0.5
    assert late["remarks"] == {"slirp4netns": ["no answer"]}
    assert document["versions"]["pasta"] == "pasta 2"


def test_the_table_says_what_failed_and_what_is_missing(table):
    text = report.markdown([FAST, LATE], table, ABOUT)
    assert "| speed | Gbit/s | higher | **8** [1 … 9] | 2 | 4 | 4 | 2 |" in text
    assert "| delay | ms | lower | 3 | – (1) | 1.5 | – | 0.5 |" in text
    assert "1. slirp4netns: no answer" in text
    assert "* slirp4netns: not installed" in text


def test_the_rows_where_a_peer_is_better_are_listed(table):
    text = report.markdown([FAST, LATE], table, ABOUT)
    assert "## Behind the best peer: 1 of 2 rows\n\n* 0.5 × delay" in text
    assert "## Targets" not in text  # none of these rows has one


def test_targets_are_in_the_table_and_in_the_json(table):
    row = Row("burst_peak", "peak", "MB", LOWER)
    table.samples["burst_peak", "netd"] = [151.0]
    assert "| peak | ≤ 150 MB | 151 | – | **not met** |" in report.markdown([row], table, ABOUT)
    (target,) = report.document([row], table, ABOUT)["targets"]
    assert (target["row"], target["measured"], target["met"]) == ("peak", 151.0, False)
