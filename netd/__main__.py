"""``python -m netd`` and the ``netd`` command."""

from __future__ import annotations

import sys

from netd.cli import main

if __name__ == "__main__":
    sys.exit(main())
