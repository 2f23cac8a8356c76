"""Which Redis a user names, and how that is shown to people."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from rqmr.errors import RefusedError


@dataclass(frozen=True)
class Where:
    """Where runs live, as a user says it."""

    redis_url: str | None = field(default=None, repr=False)  # it may have a password
    durable: str | os.PathLike[str] | None = None  # a directory that keeps a private server's data

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if self.redis_url is not None and self.durable is not None:
            raise RefusedError("--redis-url names a server, --durable starts one; choose one of them")

    @property
    def url(self) -> str | None:
        """The Redis that is named, if one is."""
        if self.redis_url is not None:
            return self.redis_url
        if self.durable is not None:
            return None
        return os.environ.get("RQMR_REDIS_URL") or os.environ.get("REDIS_URL") or None

    @property
    def directory(self) -> Path | None:
        """The durable directory, absolute."""
        return None if self.durable is None else Path(self.durable).absolute()

    @property
    def option(self) -> str:
        """What to write behind a command to mean the same place."""
        if self.durable is not None:
            return f" --durable {shlex.quote(os.fspath(self.durable))}"
        return f" --redis-url {shlex.quote(hide_password(self.redis_url))}" if self.redis_url is not None else ""


def hide_password(url: str) -> str:
    """Return a URL that can be shown: its password is ***, wherever it stands and however it is spelled."""
    scheme, colon, rest = url.partition("://")
    login, at, host = rest.rpartition("@")
    if ":" in login:
        rest = f"{login.partition(':')[0]}:***{at}{host}"
    return scheme + colon + re.sub(r"(?i)(password=)[^&]*", r"\1***", rest)
