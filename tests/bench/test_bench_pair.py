"""Two builds side by side: what is made of the samples, and one pair of real transfers."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import pair

ROOT = Path(__file__).resolve().parents[2]


def test_the_mean_ratio_of_pairs_and_its_error():
    assert pair.ratio([2.0, 8.0], [1.0, 2.0]) == "2.828 ± 0.347"
    assert pair.ratio([3.0, 3.0, 3.0], [2.0, 2.0, 2.0]) == "1.500 ± 0.000"


def test_what_took_no_time_is_no_ratio():
    assert pair.ratio([0.0, 1.0], [1.0, 0.0]) == "nothing to compare"


def test_the_tenth_and_the_ninetieth_percentile():
    samples = [pair.Sample(float(n), n / 100, 7) for n in range(20)]
    rate, cpu = "9.50 [2.00 … 17.00]", "0.095 [0.020 … 0.170]"
    assert pair.summary("old", samples, "bulk") == f"old: {rate} Gbit/s, {cpu} CPU s/GB, 7 faults"
    assert pair.summary("new", samples, "rr") == f"new: {rate} 1/s, {cpu} CPU ms, 7 faults"


@pytest.mark.parametrize(
    "words", [["--pairs", "1"], ["--gb", "0"], ["--streams", "0"], ["--way", "up"], ["--load", "rr"]]
)
def test_words_that_cannot_be(words, capsys):
    with pytest.raises(SystemExit):
        pair.arguments(["old", *words])
    assert "usage" in capsys.readouterr().err


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("what", "way"), [("bulk", "in"), ("bulk", "loopback"), ("connect", "published"), ("rr", "out")]
)
def test_two_pairs_end_to_end(measurable, what, way):
    command = [sys.executable, str(ROOT / "bench" / "pair.py"), str(ROOT), str(ROOT), "--pairs", "2", "--gb", "0.05"]
    done = subprocess.run(
        [*command, "--load", what, "--way", way], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    old, new, ratio = done.stdout.splitlines()
    assert old.startswith("old: ") and new.startswith("new: ")
    assert ratio.startswith(f"new : old, {what} {way}, MTU 65520, 2 pairs: rate ")


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("peer", "what"), [("pasta", "connect"), ("slirp4netns", "rr")])
def test_beside_a_peer(measurable, peer, what):
    if shutil.which(peer) is None:
        pytest.skip(f"{peer} is not installed")
    command = [sys.executable, str(ROOT / "bench" / "pair.py"), peer, str(ROOT), "--pairs", "2", "--way", "published"]
    done = subprocess.run([*command, "--load", what], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    first, second, ratio = done.stdout.splitlines()
    assert first.startswith(f"{peer}: ") and second.startswith("netd: ")
    assert ratio.startswith(f"netd : {peer}, {what} published, MTU 65520, 2 pairs: rate ")
