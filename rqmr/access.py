"""Reach the Redis that is named, a durable directory's, or a private one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import redis

from rqmr.connection import IN_ENVIRONMENT, Client, check_server, clone, connect, join
from rqmr.dispatch import Dispatch
from rqmr.local import Local
from rqmr.where import Where, hide_password

#: How a command names its connections to the private server of another one, and how long that one waits for it to go.
_VISITOR, _VISIT_SECONDS = "rqmr-visitor", 2.0


@dataclass
class Server:
    """One Redis, reached and checked."""

    client: Client
    url: str = field(repr=False)
    description: str
    warnings: list[str] = field(default_factory=list)
    is_own: bool = False  # whether it ends with this command
    is_woken: bool = False  # whether this command has started it again, on the data of an earlier one
    is_visited: bool = False  # whether it is another command's, and ends with that

    def listening(self, queue: str) -> int:
        """Return how many workers listen on a queue."""
        return Dispatch(self.client, queue).workers()

    def see_visitors_out(self) -> None:
        """Let commands that follow a run here see its end, before the server ends with this command."""
        if self.is_own:
            deadline = time.monotonic() + _VISIT_SECONDS
            with contextlib.suppress(redis.RedisError), closing(clone(self.client, patient=False)) as client:
                while time.monotonic() < deadline and any(each["name"] == _VISITOR for each in client.client_list()):
                    time.sleep(0.02)


def visit(url: str, stack: ExitStack) -> Server:
    """Connect to the private server of another command that runs now."""
    client = stack.enter_context(closing(clone(connect(url), patient=False, name=_VISITOR)))
    return Server(client, url, "private server of a command that runs now", is_visited=True)


def reach(where: Where, local: Local | None, stack: ExitStack) -> Server:
    """Connect to the Redis that is named or, if none is, to the private one that `local` starts.

    Raises:
        RedisError: it can't be reached, refuses, or is too old.
    """
    ready = local.wait_ready() if local else None
    url = ready if where.url is None else where.url
    assert url is not None
    client = stack.enter_context(closing(connect(url)))
    name, warnings = check_server(client, url)
    if where.url is None:
        told = f"private {name} on a unix socket" + (f", kept in {where.durable}" if where.durable is not None else "")
        return Server(client, url, told, warnings, is_own=True)
    told = f"{name} at {hide_password(url)}"
    return Server(client, url, told if where.redis_url is not None else f"{told} (from the environment)", warnings)


def join_shuffle(server: Server, urls: Sequence[str]) -> tuple[str, ...]:
    """Check the servers that a shuffle is to be spread over besides the run's own, and add warnings to that one's.

    Returns:
        Their URLs, without those that name the run's own server, or one that another names.

    Raises:
        RedisError: one of them can't be reached, refuses, or is too old.
    """
    known, kept = {_id_of(server.client)} if urls else set(), []
    for url in urls:
        with closing(join(url, server.client, patient=False)) as client:
            _, warnings = check_server(client, url, login=IN_ENVIRONMENT)
            server.warnings += [f"{hide_password(url)}: {warning}" for warning in warnings]
            if (own := _id_of(client)) not in known:
                known.add(own)
                kept.append(url)
    return tuple(kept)


def _id_of(client: Client) -> str:
    return str(client.info("server").get("run_id"))
