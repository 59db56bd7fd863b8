"""``netd serve``: hand over to the daemon. Only here does the command import it."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace

from netd.cli.failure import Failure


def configure_serve(parser: ArgumentParser) -> None:
    parser.add_argument("--runtime-dir", metavar="DIR", help="where the sockets are (default $XDG_RUNTIME_DIR/netd)")


def serve(args: Namespace) -> int:
    """Run the daemon until SIGTERM or SIGINT."""
    from netd import settings
    from netd.errors import NetdError
    from netd.serve import serve as run_daemon

    directory = os.path.abspath(args.runtime_dir) if args.runtime_dir else None
    level = "warning" if args.log_level == "warn" else args.log_level
    try:
        return run_daemon(settings.load(runtime_dir=directory, log_level=level))
    except NetdError as exc:
        raise Failure(str(exc), exc.hint) from exc
    except OSError as exc:
        raise Failure(f"{exc.filename or 'netd serve'}: {exc.strerror or exc}") from exc
