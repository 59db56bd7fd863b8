"""Whatever a program under test does, the run ends in time and says what is missing."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from bench import run
from bench.programs import Pasta, PastaNetwork
from bench.rows import HIGHER, Block, Row, Table, Visit

ROW = Row("row", "a row", "1", HIGHER)
FULL = Row("full", "only in the full pass", "1", HIGHER, full_only=True)


class Quiet:
    """A world in which nothing is left over."""

    def sweep(self):
        return []


def visit(quick=True):
    return Visit(Quiet(), SimpleNamespace(name="netd"), Table(), quick)


def test_a_hung_visit_is_cut_short_and_noted():
    v = visit()
    begin = time.monotonic()
    run.visit_once(Block("b", (ROW, FULL), lambda visit: time.sleep(60), 1, 1, 60), v, 0.2)
    assert time.monotonic() - begin < 5
    assert v.table.failures == {("row", "netd"): ["not done within 0 s"]}


def test_hanging_on_while_tidying_up_is_cut_short_too(monkeypatch):
    again = run.signal.setitimer
    monkeypatch.setattr(run.signal, "setitimer", lambda which, first, then=0.0: again(which, first, min(then, 0.2)))

    def stubborn(visit):
        try:
            time.sleep(60)
        finally:
            time.sleep(60)

    begin = time.monotonic()
    run.visit_once(Block("b", (ROW,), stubborn, 1, 1, 60), visit(), 0.2)
    assert time.monotonic() - begin < 5


def test_what_was_measured_before_the_limit_is_kept():
    def half(visit):
        visit.put("row", 1.0)
        time.sleep(60)

    v = visit()
    run.visit_once(Block("b", (ROW,), half, 1, 1, 60), v, 0.2)
    assert v.table.median("row", "netd") == 1.0
    assert not v.table.failures


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(run.time, "monotonic", lambda: now.seconds)
    return now


def measured(clock, seconds, rounds=3, blocks=2):
    """A run whose visits take ``seconds`` each by ``clock``; which were made, and the table."""
    made = []

    def block(name):
        def take(visit):
            made.append((name, visit.program.name))
            clock.seconds += seconds
            visit.put(name, 1.0)

        return Block(name, (Row(name, name, "1", HIGHER),), take, rounds, rounds, 1000)

    programs = [SimpleNamespace(name=name) for name in ("netd", "slirp4netns", "pasta")]
    options = SimpleNamespace(quick=True, rounds=None, blocks=[block(f"b{i}") for i in range(blocks)])
    table = Table()
    minutes = run.measure(Quiet(), programs, options, table)
    return made, table, minutes


def test_rounds_are_interleaved_and_the_order_turns(clock):
    made, table, _ = measured(clock, 1.0, rounds=2, blocks=1)
    assert [name for _, name in made] == ["netd", "slirp4netns", "pasta", "slirp4netns", "pasta", "netd"]
    assert not table.failures


def test_later_rounds_are_left_out_when_time_is_up(clock):
    made, table, minutes = measured(clock, 60.0)
    assert len(made) == 9  # the first round of both, and the second of one; nothing half done
    assert minutes <= run.QUICK_MINUTES
    assert not table.failures


def test_a_first_round_that_comes_too_late_is_noted(clock):
    made, table, minutes = measured(clock, 200.0, rounds=1, blocks=2)
    assert len(made) == 3
    assert set(table.failures) == {("b1", name) for name in ("netd", "slirp4netns", "pasta")}
    assert "time" in table.failures["b1", "netd"][0]


def test_passes_are_bounded_below_what_was_promised():
    assert run.QUICK_MINUTES <= 9.5
    assert run.FULL_MINUTES <= 24.5


def test_a_pasta_that_ignores_sigterm_is_killed(tmp_path):
    program = "import signal\nsignal.signal(15, signal.SIG_IGN)\nprint(flush=True)\nsignal.pause()"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    process.stdout.readline()
    network = PastaNetwork.__new__(PastaNetwork)
    network.program, network.pid, network.folder = Pasta.__new__(Pasta), process.pid, tmp_path / "none"
    begin = time.monotonic()
    network.close()
    assert time.monotonic() - begin < 8
    assert process.poll() is not None
    process.stdout.close()
