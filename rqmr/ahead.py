"""The process of the supervisor: started for a `Local`, or ahead of the first one, before it is known what that wants.

Imports next to nothing: the command starts with it.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import IO

#: What the supervisor's Python runs, with this process's sys.path, so that it imports the same rqmr.
_PROGRAM = "import sys; sys.path[:] = {path!r}; from rqmr.supervise import main; main({directory!r})"

_waiting: subprocess.Popen[bytes] | None = None


def start(directory: str = "", errors: IO[bytes] | None = None, lock: int | None = None) -> subprocess.Popen[bytes]:
    """Start a supervisor, which waits for its order.

    `directory`: what it removes if there never is one; `lock`: a descriptor that it inherits.
    """
    return subprocess.Popen(
        # With no directory put before the path: a queue.py of the user's must not be found.
        [sys.executable, "-P", "-c", _PROGRAM.format(path=sys.path, directory=directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors or subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,  # Ctrl-C is for this process alone: its last commands need the server
        pass_fds=() if lock is None else (lock,),
    )


def start_waiting() -> None:
    """Start the supervisor of this process's first `Local` before that is made: it imports what it will need.

    `end_waiting` ends it if nobody has taken it; it ends with this process anyway.
    """
    global _waiting
    with contextlib.suppress(OSError):  # which the `Local` will tell of
        _waiting = start()


def take() -> subprocess.Popen[bytes] | None:
    """Return the one that waits, if any, to whoever gives it its order."""
    global _waiting
    taken, _waiting = _waiting, None
    return taken


def end_waiting() -> None:
    """End the one that waits, if any."""
    if waiting := take():
        with waiting:
            waiting.kill()
