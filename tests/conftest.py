"""For all tests: the signals as a program that is started by hand has them."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A shell's background job and nohup(1) ignore some, which every program that is started here would inherit."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
