"""The command line: contract 1. Each command is one call of a function that Python and the tests call too."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from tunnel.cli import work, answers, tools  # in the order of --help
from tunnel.cli.app import app
from tunnel.errors import BAD_INPUT, RESUMABLE, Stopped, UserError

__all__ = ["answers", "app", "main", "tools", "work"]


def main() -> None:
    """Runs a command; a mistake is one line and exit 2, a stop that can be resumed is exit 75."""
    for s in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(s, interrupted)
    try:
        app()
    except UserError as e:
        leave(f"error: {e}", BAD_INPUT)
    except Stopped as e:
        leave(f"stopped: {e}", RESUMABLE)
    except KeyboardInterrupt:
        leave("stopped: interrupted; the same command goes on", RESUMABLE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def interrupted(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def leave(line: str, code: int) -> NoReturn:
    sys.stderr.write(line + "\n")
    sys.stdout.flush()
    raise SystemExit(code)
