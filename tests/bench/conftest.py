import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # bench is not part of the installed package


@pytest.fixture
def measurable():
    """Skips where the benchmark itself cannot run."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for tool in ("iperf3", "unshare", "ip"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("needs /dev/net/tun")
