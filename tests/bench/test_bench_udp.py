"""The search for the rate that arrives whole, on a wire of known capacity."""

import pytest

from bench.load import Transfer
from bench.measure_udp import UDP_ROWS, figure, search


def wire(capacity, hiccups=()):
    """A probe; the numbers in ``hiccups`` are of probes that lose a burst whatever the rate."""
    probes = []

    def probe(rate):
        probes.append(rate)
        arrives = min(rate, capacity) * (0.9 if len(probes) - 1 in hiccups else 1)
        return Transfer(arrives, 0, 1, loss=1 - arrives / rate)

    return probe, probes


@pytest.mark.parametrize("capacity", [450.0, 1500.0, 3100.0])
def test_the_search_closes_in_on_the_capacity(capacity):
    probe, _ = wire(capacity)
    assert search(probe, 400.0, 7) == pytest.approx(capacity, rel=0.15)


def test_below_the_first_rate_it_goes_down():
    probe, _ = wire(120.0)
    assert search(probe, 400.0, 6) == pytest.approx(120.0, rel=0.25)


def test_a_single_hiccup_does_not_decide():
    probe, probes = wire(1500.0, hiccups={0})
    assert search(probe, 400.0, 5) > 1200
    assert probes[:2] == [400.0, 400.0]


def test_the_number_of_probes_is_bounded():
    probe, probes = wire(0.001)
    assert search(probe, 400.0, 5) == 0.0
    assert len(probes) == 10


def test_small_datagrams_are_counted_and_large_ones_weighed():
    assert figure(64, 64 * 8 * 1000) == 1.0
    assert figure(1400, 5e6) == 5.0
    assert {row.unit for row in UDP_ROWS if "_64_" in row.key} == {"1000/s"}
