"""What the tests of commands that outlive each other share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Workers
from terminals import Desk


@pytest.fixture
def desk(tmp_path: Path, redis_url: str, workers: Workers) -> Iterator[Desk]:
    """Terminals on the Redis of the workers; what runs in them ends with the test."""
    place = tmp_path / "desk"
    place.mkdir()
    desk = Desk(place, redis_url)
    yield desk
    desk.end()
