"""How netd is built: as it is, or with NETD_COMPILE=1 in the environment the packet path as machine code.

mypyc makes C of the very modules that run as Python otherwise; it needs a C compiler and Python's headers. All else is
in pyproject.toml.
"""

from __future__ import annotations

import os
import sys
from glob import glob

from setuptools import setup

# What a frame passes. The rest gains nothing: it waits for people, or for the kernel.
ROOMS = ("wire", "stack", "link", "relay")
MODULES = ("netd/pace.py", "netd/network.py")

wanted = os.environ.get("NETD_COMPILE", "") not in ("", "0")
extensions = []
if wanted and "bdist_wheel" in sys.argv:  # not where setuptools only asks what it needs, and what this is
    from mypyc.build import mypycify

    paths = [p for room in ROOMS for p in glob(f"netd/{room}/**/*.py", recursive=True)]
    paths = sorted(p for p in paths if not p.endswith("__init__.py"))  # these only say what their rooms are
    extensions = mypycify([*paths, *MODULES], opt_level="2", debug_level="0", multi_file=True, group_name="netd")

setup(
    ext_modules=extensions,
    setup_requires=["mypy>=2", "setuptools>=66"] if wanted else [],
    options={"build_ext": {"parallel": os.cpu_count()}},
)
