"""Runs ``python -m MODULE ARGS…`` so that its CPU time can be seen: ``sampled.py sample|cprofile OUT MODULE ARGS…``.

On signal BEGIN it starts; on signal END it stops, writes OUT, and then says so by making OUT.done.

``sample``: at every tick of the process's CPU time (``ITIMER_PROF``, setitimer(2); the kernel's tick, 1 to 10 ms) the
line that is running and its callers are counted. That costs next to nothing and so tells the truth about a hot path. A
line that is in a system call or a C function counts as itself.
``cprofile``: every call is counted and timed: exact numbers of calls, but a small function looks several times dearer
than it is.
"""

from __future__ import annotations

import json
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

BEGIN, END = signal.SIGRTMIN + 3, signal.SIGRTMIN + 4
PERIOD = 0.001

lines: Counter[tuple[str, str, int]] = Counter()  # (file, function, line) that ran
below: Counter[tuple[str, str]] = Counter()  # (file, function) that ran or was a caller


def tick(number: int, frame: FrameType | None) -> None:
    seen = set()
    if frame is not None:
        lines[frame.f_code.co_filename, frame.f_code.co_qualname, frame.f_lineno] += 1
    while frame is not None:
        seen.add((frame.f_code.co_filename, frame.f_code.co_qualname))
        frame = frame.f_back
    below.update(seen)


def done(out: Path) -> None:
    out.with_suffix(".done").touch()


def sample(out: Path) -> None:
    def begin(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGPROF, tick)
        signal.setitimer(signal.ITIMER_PROF, PERIOD, PERIOD)

    def end(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        ran = [[*key, n] for key, n in lines.items()]
        called = [[*key, n] for key, n in below.items()]
        out.write_text(json.dumps({"lines": ran, "below": called}))
        done(out)

    signal.signal(BEGIN, begin)
    signal.signal(END, end)


def trace(out: Path) -> None:
    from cProfile import Profile  # here, when this directory's profile.py no longer hides the library's

    profile = Profile()

    def begin(number: int, frame: FrameType | None) -> None:
        profile.enable()

    def end(number: int, frame: FrameType | None) -> None:
        profile.disable()
        profile.dump_stats(out)
        done(out)

    signal.signal(BEGIN, begin)
    signal.signal(END, end)


if __name__ == "__main__":
    how, target, module = sys.argv[1:4]
    sys.path[0] = ""  # as python -m has it: the current directory, not this file's
    {"sample": sample, "cprofile": trace}[how](Path(target))
    sys.argv = [module, *sys.argv[4:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
