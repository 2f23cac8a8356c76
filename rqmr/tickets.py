"""A run's register of the tickets that are enqueued and not yet taken."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

from rqmr.connection import Client, reading_keys
from rqmr.damage import whole
from rqmr.keys import RunKeys
from rqmr.scripts import Scripts


class Tickets:
    """The register of one run."""

    def __init__(self, client: Client, run: str, keys: RunKeys, scripts: Scripts) -> None:
        self._client = client
        self._run = run
        self._keys = keys
        self._scripts = scripts

    def issue(self, count: int) -> list[tuple[str, str]]:
        """Register new tickets; return each with the pending task that it names ("" for none)."""
        word, *told = self._scripts.issue(count)
        if word == "ENDED":
            return []
        last, *tasks = told
        numbers = range(last - count + 1, last + 1)
        return list(zip_longest((self._name(number) for number in numbers), tasks[:count], fillvalue=""))

    def waiting(self) -> list[str]:
        """Return the tickets that are enqueued and not yet taken."""
        with reading_keys(f"the tickets of run {self._run}"):
            return [self._name(whole(number)) for number in self._client.zrange(self._keys.tickets, 0, -1)]

    def forget(self, tickets: Iterable[str]) -> None:
        """Strike tickets off: taken, or lost by RQ."""
        if numbers := [ticket.rpartition("-t")[2] for ticket in tickets]:
            self._client.zrem(self._keys.tickets, *numbers)

    def keep(self, tickets: Iterable[str]) -> None:
        """Let tickets that are still queued count as issued now, so that they aren't looked for again at once."""
        if numbers := [ticket.rpartition("-t")[2] for ticket in tickets]:
            seconds, micros = self._client.time()
            now_ms = seconds * 1000 + micros // 1000
            self._client.zadd(self._keys.tickets, dict.fromkeys(numbers, now_ms), xx=True)

    def _name(self, number: int | str) -> str:
        return f"{self._run}-t{number}"
