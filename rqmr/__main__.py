"""`rqmr` and `python -m rqmr`: start what takes long, then the command line."""

from __future__ import annotations

import os
import sys

#: With one of these a run takes no private server, or none that can be started before it is known which.
_OTHERWISE = {"--redis-url", "--durable", "--inline", "--explain", "--detach", "--help"}


def main() -> None:
    """Run the command line, as `rqmr.cli.main` does.

    Importing it takes about as long as the supervisor of a private server takes to start. So that is started before,
    where it will most likely be needed.
    """
    try:
        if _is_private_run(sys.argv[1:]):
            from rqmr import ahead

            ahead.start_waiting()
            try:
                _command_line()
            finally:
                ahead.end_waiting()
        else:
            _command_line()
    except KeyboardInterrupt:  # so early that nobody hears signals yet
        _leave(130)
    except SystemExit as end:
        if isinstance(end.code, int) and end.code > 128:
            _leave(end.code)
        raise


def _leave(status: int) -> None:
    """End the process as it is: a signal may have interrupted anything, and Python can crash as it takes that apart."""
    import atexit
    import contextlib

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # it is closed, or nobody reads it
            stream.flush()
    os._exit(status)


def _is_private_run(words: list[str]) -> bool:
    options = {word.partition("=")[0] for word in words}
    is_named = os.environ.get("RQMR_REDIS_URL") or os.environ.get("REDIS_URL")
    return words[:1] == ["run"] and not is_named and _OTHERWISE.isdisjoint(options)


def _command_line() -> None:
    from rqmr.cli import main

    main()


if __name__ == "__main__":
    main()
