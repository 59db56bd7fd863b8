"""The benchmark itself, on the smallest block: it measures, and it leaves the machine as it was."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bench import procs

ROOT = Path(__file__).resolve().parents[2]


def test_a_process_tree_is_counted_whole():
    command = ["sh", "-c", "sleep 60 & echo; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as shell:
        try:
            shell.stdout.readline()
            pids = procs.tree(shell.pid)
            assert pids[0] == shell.pid and len(pids) == 2
            assert procs.pss(pids) > procs.pss(pids[:1]) > 0
            assert procs.peak_rss(pids) >= procs.pss(pids)
        finally:
            os.killpg(shell.pid, 9)
        shell.wait()
    assert procs.tree(shell.pid) == []


def test_threads_are_pinned_and_set_free_again():
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    with subprocess.Popen(
        [sys.executable, "-c", code + "print(flush=True); input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        threads = [int(name) for name in os.listdir(f"/proc/{process.pid}/task")]
        assert len(threads) == 2
        before = os.sched_getaffinity(process.pid)
        cpu = min(before)
        with procs.pinned([process.pid, 2**22 + 1], cpu):  # the second does not exist
            assert [os.sched_getaffinity(thread) for thread in threads] == [{cpu}, {cpu}]
        assert [os.sched_getaffinity(thread) for thread in threads] == [before, before]
        process.stdin.close()


def test_cpu_time_is_that_of_the_clock():
    loop = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", loop], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert sum(procs.cpu_seconds([process.pid])) == pytest.approx(0.33, abs=0.1)
        process.stdin.close()


def test_page_faults_of_who_is_left():
    before = procs.minor_faults([os.getpid(), 2**22 + 1])  # the second does not exist
    touched = bytearray(64 << 20)
    assert 0 < before < procs.minor_faults([os.getpid()]) and touched


def links() -> set[str]:
    return set(os.listdir("/sys/class/net"))


@pytest.mark.timeout(120)
def test_one_block_end_to_end(measurable, tmp_path):
    if shutil.which("slirp4netns") is None:
        pytest.skip("needs slirp4netns")
    before = links(), Path("/proc/mounts").read_text(), set(os.listdir(tempfile.gettempdir()))
    command = [sys.executable, str(ROOT / "bench" / "run.py"), "--quick", "--peers-only", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--rows", "attach,rr", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {row["key"]: row for row in json.loads((tmp_path / "latest.json").read_text())["rows"]}
    assert rows["attach"]["slirp4netns"] > 0
    assert rows["rr_out_p50"]["slirp4netns"] > 0
    assert rows["rr_published_loopback_p50"]["slirp4netns"] > 0
    assert not rows["attach"]["remarks"].get("slirp4netns")
    assert "ended what was left" not in done.stdout
    assert links() == before[0]
    assert Path("/proc/mounts").read_text() == before[1]
    left = {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("netd-bench-")}
    assert left <= before[2]


def test_unknown_rows_are_refused():
    command = [sys.executable, str(ROOT / "bench" / "run.py"), "--rows", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "no rows 'nothing'" in done.stderr
