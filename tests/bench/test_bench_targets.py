"""Ratios, and the verdict on every kind of target."""

import pytest

from bench import targets
from bench.rows import HIGHER, LOWER, Row, Table
from bench.run import BLOCKS

FAST = Row("bulk_out_1500", "speed", "Gbit/s", HIGHER)
LATE = Row("api_p99_bulk", "delay", "ms", LOWER)
KEYS = {row.key for block in BLOCKS for row in block.rows}


@pytest.mark.parametrize(
    ("row", "mine", "theirs", "expected"),
    [
        (FAST, 8.0, 4.0, 2.0),
        (LATE, 8.0, 4.0, 0.5),
        (FAST, None, 4.0, None),
        (LATE, 8.0, None, None),
        (LATE, 0.0, 0.0, 1.0),
        (LATE, 0.0, 1.0, targets.MOST),  # infinitely better
        (LATE, 1.0, 0.0, 0.0),
        (LATE, -3.0, 1.0, targets.MOST),  # a slope that is lost in the noise
        (LATE, 1.0, -3.0, 0.0),
        (FAST, 0.0, 1.0, 0.0),
    ],
)
def test_a_ratio_above_one_always_means_that_netd_is_better(row, mine, theirs, expected):
    assert targets.ratio(row, mine, theirs) == expected


def judged(row, **samples):
    table = Table({(row.key, name): values for name, values in samples.items()})
    return targets.judge([row], table)


@pytest.mark.parametrize(("mine", "met"), [(5.9, False), (6.0, True)])
def test_a_target_against_a_peer(mine, met):
    (verdict,) = judged(FAST, netd=[mine], slirp4netns=[1.0, 1.0, 2.0])
    assert verdict.met is met
    assert verdict.measured == pytest.approx(mine)
    assert verdict.at_worst == pytest.approx(mine / 2)
    assert verdict.wanted == "≥ 6 × slirp4netns"


@pytest.mark.parametrize(("mine", "met"), [(50.0, True), (50.1, False)])
def test_a_limit(mine, met):
    (verdict,) = judged(LATE, netd=[mine])
    assert (verdict.met, verdict.measured, verdict.wanted) == (met, mine, "≤ 50 ms")


@pytest.mark.parametrize(("loaded", "met"), [(50.0, True), (62.0, True), (63.0, False)])
def test_flat_allows_a_fifth_worse_and_anything_better(loaded, met):
    row = Row("rr_idle_4000", "with 4000", "µs", LOWER)
    table = Table({(row.key, "netd"): [loaded], ("rr_idle_0", "netd"): [50.0]})
    (verdict,) = targets.judge([row], table)
    assert verdict.met is met


def test_without_figures_a_target_is_not_met():
    assert [v.met for v in judged(FAST, netd=[9.0])] == [False]
    assert [v.met for v in judged(LATE)] == [False]


def test_rows_that_were_not_measured_are_not_judged():
    assert targets.judge([], Table()) == []


def test_every_target_has_its_row_and_the_short_pass_measures_it():
    quick = {row.key for block in BLOCKS if block.quick_rounds for row in block.rows if not row.full_only}
    for target in targets.TARGETS:
        assert target.row in quick
        assert target.than in {"", *targets.PEERS} | quick


def test_no_row_is_there_twice():
    keys = [row.key for block in BLOCKS for row in block.rows]
    titles = [row.title for block in BLOCKS for row in block.rows]
    assert len(keys) == len(set(keys))
    assert len(titles) == len(set(titles))
