"""Containers that units of a real user's service manager run: for a machine that has one, with netd.service running.

Written for Debian 13, as its user: ``pytest tests/podman/test_podman_units.py``.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("units.sh")
IMAGE = os.environ.get("NETD_TEST_IMAGE", "localhost/testimage")
STEPS = 9


def missing() -> str:
    if os.geteuid() == 0:
        return "needs a normal user whose service manager runs netd.service"
    for command, what in (
        (["systemctl", "--user", "is-active", "--quiet", "netd.service"], "no netd.service of this user's is active"),
        (["podman", "image", "exists", IMAGE], f"no Podman with {IMAGE}"),
    ):
        try:
            if subprocess.run(command, check=False, capture_output=True).returncode:
                return what
        except FileNotFoundError:
            return what
    return ""


@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
def test_the_others_network_outlives_a_unit() -> None:
    done = subprocess.run(["bash", SCRIPT, IMAGE], check=False, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("ok ") == STEPS, done.stdout + done.stderr
