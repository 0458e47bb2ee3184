"""The command line: contract 1. Each command is one call of a function that Python and the tests call too."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

from tunnel.cli import work, answers, tools  # in the order of --help
from tunnel.cli.app import app
from tunnel.errors import BAD_INPUT, RESUMABLE, Stopped, UserError, shown
from tunnel.folder import trouble

AGAIN = 3.0  # seconds, of the 10 that a command may take to stop
TYPERS = 130  # exit code for a KeyboardInterrupt inside a command

__all__ = ["answers", "app", "main", "tools", "work"]


def main() -> None:
    """Runs a command; a mistake is one line and exit 2, a stop that can be resumed is exit 75."""
    for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM):
        signal.signal(s, interrupted)
    try:
        with trouble.stops():
            app()
    except UserError as e:
        leave(f"error: {e}", BAD_INPUT)
    except Stopped as e:
        leave(f"stopped: {e}", RESUMABLE)
    except (KeyboardInterrupt, SystemExit) as e:
        if isinstance(e, SystemExit) and e.code != TYPERS:
            raise
        leave("stopped: interrupted; the same command goes on", RESUMABLE)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as e:  # what the system refuses of a path: its name is too long, a file stands in its way
        if e.filename is None:
            raise
        leave(f"error: {shown(str(e.filename))}: {e.strerror}", BAD_INPUT)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def interrupted(signum: int, frame: object) -> NoReturn:
    """Says it again until somebody listens: what is raised in a weakref's callback, or in `__del__`, Python drops."""
    signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
    raise KeyboardInterrupt


def leave(line: str, code: int) -> NoReturn:
    sys.stderr.write(line + "\n")
    sys.stdout.flush()
    raise SystemExit(code)
