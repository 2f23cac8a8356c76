"""What a user asks for, and the local server and workers that it takes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rqmr.errors import RefusedError
from rqmr.local import Local, default_workers
from rqmr.where import Where

if TYPE_CHECKING:
    from rqmr.config import Config
    from rqmr.job import Job
    from rqmr.spool import Input


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `rqmr.run` and the command line have in common."""

    job: str | type[Job]
    inputs: Sequence[Input]
    params: Mapping[str, Any]
    config: Config
    output: str  # a directory; {run} in it stands for the run's id
    temporary: bool = False  # whether that directory goes when it has been read
    where: Where = field(default_factory=Where)
    inline: bool = False
    overwrite: bool = False
    includes: Sequence[str | os.PathLike[str]] = ()  # files that travel with the job

    @property
    def is_private(self) -> bool:
        """Whether the Redis is one that starts and ends with this command."""
        return not self.inline and self.where.url is None

    @property
    def is_spread(self) -> bool:
        """Whether workers may be on other hosts."""
        return not self.inline and self.where.url is not None

    @property
    def ends_with_driver(self) -> bool:
        """Whether nobody can go on with the run without this command."""
        return self.inline or self.temporary or (self.is_private and self.where.durable is None)

    @property
    def local_workers(self) -> int:
        """How many workers to start here."""
        if self.inline:
            return 0
        if self.config.workers is not None:
            return self.config.workers
        return default_workers() if self.is_private else 0


@contextlib.contextmanager
def starting(request: Request) -> Iterator[Local | None]:
    """Start the server and the workers that a request takes, if any, and end them with the block.

    They start while the block goes on: it can import what else it needs, load the job and look at its input.

    Raises:
        RefusedError: nothing would ever run it, or there is no server to start.
    """
    if request.is_private and not request.local_workers:
        raise RefusedError("0 workers on a private server would never end; name a Redis with workers, or use -w 1")
    if request.is_private and request.config.shuffle_urls:
        raise RefusedError(
            "--shuffle-url adds servers to a Redis that outlives this command: name that one, too, --redis-url URL"
        )
    if not request.local_workers:
        yield None
        return
    with Local(
        workers=request.local_workers,
        queue=request.config.queue,
        url=request.where.url,
        durable=request.where.directory,
    ) as local:
        yield local
