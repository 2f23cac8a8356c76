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
        raise SystemExit(130) from None


def _is_private_run(words: list[str]) -> bool:
    options = {word.partition("=")[0] for word in words}
    is_named = os.environ.get("RQMR_REDIS_URL") or os.environ.get("REDIS_URL")
    return words[:1] == ["run"] and not is_named and _OTHERWISE.isdisjoint(options)


def _command_line() -> None:
    from rqmr.cli import main

    main()


if __name__ == "__main__":
    main()
