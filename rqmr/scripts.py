"""Typed calls of the Lua scripts: one method a script, words in and out as the script's own header gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Any

import redis
from msgspec import Struct, structs

from rqmr.connection import Client, reading_keys
from rqmr.keys import PHASE_STRIDE, RunKeys, rank, segment_field
from rqmr.model import AttemptId, Claim, Outcome, Phase, Progress, TaskId

NAMES = (
    "advance", "ask", "back_up", "charge", "claim", "commit", "drive", "drop", "expire", "fail", "finish", "give_way",
    "issue", "pause", "place", "release", "renew", "reopen", "resume", "ship", "tell", "write",
)  # fmt: skip

#: How long a work-horse's place as standby lasts if it doesn't ask again.
STANDBY_MS = 2_000
#: Bytes of chunks in one call, unless one has more: the server does nothing else meanwhile.
_CALL_BYTES = 256 << 10
#: How often a server may forget its scripts in the middle of one call.
_FORGETFUL = 5


@cache
def source(name: str) -> str:
    """Return a script's text."""
    return resources.files("rqmr").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


for name in NAMES:
    source(name)  # so that a work-horse, a fork, has them already


class Death(Struct, frozen=True):
    """What is known of an attempt whose work-horse is gone."""

    since_ms: int | str = ""  # its last renewal
    how: str = ""  # its process died, "" if it didn't
    at: int | str = ""  # the record's index, "" for none
    skip_bad: int = 0  # records that the run may skip
    max_failed: int = 1  # attempts that may fail, and
    failure: bytes = b""  # the run's failure if they have, since processes died at the record


class Scripts:
    """The scripts of one run on one server."""

    def __init__(self, client: Client, keys: RunKeys) -> None:
        self._client = client
        self._keys = keys
        self._scripts = {name: client.register_script(source(name)) for name in NAMES}

    def _call(self, name: str, keys: Sequence[str], *arguments: Any) -> Any:
        with reading_keys(f"the state of run {self._keys.name}"):
            return _text(self._ask(name, keys, *arguments))

    def _ask(self, name: str, keys: Sequence[str], *arguments: Any) -> Any:
        return _again_without_script(lambda: self._scripts[name](keys=keys, args=arguments))

    def claim(
        self,
        *,
        token: str,
        sequence: int,
        ticket: str,
        named: str,
        worker: str,
        host: str,
        lease_ms: int,
        resumed: int = 0,
    ) -> Claim | str:
        """Return a claim, or "STAND BY", "NOTHING" or "ENDED"; `resumed`: how often the run had been, by its spec."""
        k = self._keys
        with reading_keys(f"a task of run {k.name}"):
            word, *told = self._ask(
                "claim",
                [
                    k.run, k.pending, k.leases, k.attempts, k.tries, k.claims, k.tickets, k.backups, k.events,
                    k.holders, k.standby, k.splits,
                ],
                token, sequence, ticket.rpartition("-t")[2], named, worker, host, lease_ms, k.lease_prefix,
                PHASE_STRIDE, STANDBY_MS, resumed,
            )  # fmt: skip
            if word != b"CLAIMED":
                return str(_text(word))
            attempt, started_ms, died, bad = _text(told[:-1])
            deaths = (line.split(" ", 1) for line in bad.splitlines())
            bad_records = {int(index): how for index, how in deaths}
            return Claim(AttemptId.parse(attempt), started_ms, died > 0, bad_records, split=told[-1])

    def issue(self, count: int) -> list[Any]:
        """Return ["ISSUED", last number, pending task, …] or ["ENDED"]."""
        k = self._keys
        return list(self._call("issue", [k.run, k.tickets, k.pending], count))

    def charge(self, cost: int) -> str:
        """Return "CHARGED" or "ENDED"."""
        return str(self._call("charge", [self._keys.run], cost))

    def give_way(self, others: Sequence[RunKeys], worker: str, behind: int) -> str:
        """Return "GIVE WAY", "GO ON" or "ENDED"; `behind`: the most that a run may be."""
        of_others = [key for k in others for key in (k.run, k.pending, k.backups)]
        return str(self._call("give_way", [self._keys.run, *of_others], worker, behind))

    def renew(self, claim: Claim, *, worker: str, host: str, lease_ms: int, progress: Progress) -> str:
        """Return "RENEWED", "STALE" or "ENDED"."""
        k, attempt = self._keys, claim.attempt
        keys = [k.run, k.winners(attempt.task), k.pending, k.leases, k.lease(attempt), k.attempts, k.tries, k.events]
        return str(
            self._call(
                "renew", keys, str(attempt), str(attempt.task), lease_ms, worker, host, claim.started_ms,
                progress.records, progress.size, f"{progress.fraction:.4f}",
                progress.waits,
            )
        )  # fmt: skip

    def write(self, fields: dict[str, dict[str, bytes]]) -> set[str]:
        """Write the fields of each shuffle hash, all in one go; return the replies: "WRITTEN" or "ENDED"."""
        script = self._scripts["write"]

        def send() -> Any:
            # By its hash, hoping that the server has it: a pipeline would first ask, each time.
            pipe = self._client.pipeline(transaction=False)
            for shuffles, arguments in _calls_of_write(fields):
                pipe.evalsha(script.sha, 1 + len(shuffles), self._keys.run, *shuffles, *arguments)
            # Raised by redis-py an error tells the command, whose megabyte it would wrap to lines first.
            replies = pipe.execute(raise_on_error=False)
            if errors := [reply for reply in replies if isinstance(reply, Exception)]:
                raise errors[0]
            return replies

        def send_with_script() -> Any:
            self._client.script_load(script.script)
            return send()

        try:
            return set(_text(send()))
        except redis.exceptions.NoScriptError:
            return set(_text(_again_without_script(send_with_script)))

    def commit(
        self,
        claim: Claim,
        outcome: Outcome,
        encoded: bytes,
        partitions: Sequence[int],
        step: int,
        skip_bad: int,
        failure: bytes,
    ) -> list[Any]:
        """Return the script's reply.

        The `partitions` are those of `step` that the attempt has a segment for; `failure` is the run's if it skips more
        than `skip_bad` records.
        """
        k, attempt, task = self._keys, claim.attempt, claim.attempt.task
        return list(
            self._call(
                "commit",
                [*self._of_task(attempt), k.totals(task), k.durations(task), k.events, k.holders]
                + [k.shuffle(step, partition) for partition in partitions],
                str(attempt), str(task), encoded, claim.started_ms, outcome.records, outcome.size,
                segment_field(task.index, attempt.number, 0), f"keys:s{step}", outcome.key_type,
                len(outcome.skipped), skip_bad, failure,
            )
        )  # fmt: skip

    def ask(self, asks: Sequence[bytes]) -> str:
        """Return "ASKED" or "ENDED"."""
        return str(self._call("ask", [self._keys.run, self._keys.asks], *asks))

    def ship(self, ask: bytes, key: str, answer: bytes, *, lasts_ms: int) -> str:
        """Return "SHIPPED", "ALREADY" or "ENDED"; `key`: of the shipment."""
        return str(self._call("ship", [self._keys.run, self._keys.asks, key], ask, answer, lasts_ms))

    def fail(self, attempt: AttemptId, *, phase: int, max_failed: int, failure: bytes, message: str) -> str:
        """Return "FAILED", "RUN FAILED", "STALE" or "ENDED"."""
        task = attempt.task
        line = rank(phase, task.index)
        keys = self._at_the_end_of(attempt)
        return str(self._call("fail", keys, str(attempt), str(task), line, max_failed, failure, message))

    def expire(self, attempt: AttemptId, *, phase: int, max_lost: int, failure: bytes, death: Death | None) -> str:
        """Return "LOST", "RUN FAILED", "ALIVE" or "ENDED"; `death`: what is known if its horse has died."""
        task = attempt.task
        line = rank(phase, task.index, urgent=True)
        return str(
            self._call(
                "expire", self._at_the_end_of(attempt), str(attempt), str(task), line, max_lost, failure,
                *structs.astuple(death or Death()),
            )
        )  # fmt: skip

    def release(self, attempt: AttemptId, *, phase: int) -> str:
        """Return "RELEASED", "STALE" or "ENDED"."""
        line = rank(phase, attempt.task.index)
        keys = [*self._of_task(attempt), self._keys.backups, self._keys.holders]
        return str(self._call("release", keys, str(attempt), str(attempt.task), line))

    def reopen(
        self, attempt: AttemptId, outcome: Outcome, reader: TaskId, *, phase: int, max_lost: int, failure: bytes
    ) -> str:
        """Return "REOPENED", "RUN FAILED" or "ALREADY"; `reader` is the task that couldn't read the segment."""
        k, task = self._keys, attempt.task
        keys = [
            k.run, k.winners(task), k.pending, k.attempts, k.tries, k.totals(task), k.events, k.winners(reader),
            k.backups,
        ]  # fmt: skip
        return str(
            self._call(
                "reopen", keys, str(attempt), str(task), rank(phase, task.index, urgent=True), phase,
                outcome.records, outcome.size, max_lost, failure, str(reader), len(outcome.skipped),
            )
        )  # fmt: skip

    def advance(self, number: int, phase: Phase, following: Phase | None) -> str:
        """Return "ADVANCED", "NOT YET" or "ALREADY"."""
        k = self._keys
        name, tasks = (following.name, following.tasks) if following else ("", 0)
        keys = [k.run, k.winners(phase), k.pending, k.events]
        return str(self._call("advance", keys, number, phase.tasks, name, tasks, rank(number + 1, 0)))

    def back_up(self, attempt: AttemptId, *, phase: int, worker: str) -> str:
        """Return "BACKED UP" or "ALREADY"."""
        k, task = self._keys, attempt.task
        keys = [k.run, k.winners(task), k.pending, k.leases, k.backups, k.events]
        return str(self._call("back_up", keys, str(attempt), str(task), worker, rank(phase, task.index)))

    def drive(self, driver: str, *, lease_ms: int) -> list[Any]:
        """Return ["DRIVING", epoch], ["HELD", by whom], ["RESIGNED"] or ["ENDED"]."""
        return list(self._call("drive", [self._keys.run, self._keys.driver], driver, lease_ms))

    def pause(self, committed: int | None, used: int, note: str) -> str:
        """Return "PAUSED", "NOTED", "GOES ON", "ALREADY" or "ENDED"; `committed` is None to let claims go on."""
        keys = [self._keys.run, self._keys.events]
        return str(self._call("pause", keys, "" if committed is None else committed, used, note))

    def finish(self, state: str, failure: bytes, end: bytes, keep_ms: int, *, seen: bool) -> str:
        """Return the run's state, or "gone"."""
        k = self._keys
        return str(self._call("finish", [k.run, k.events, k.end], state, failure, end, keep_ms, "seen" if seen else ""))

    def resume(self, spec: bytes, phases: Sequence[Phase], *, fresh: bool) -> str:
        """Return "RESUMED", the run's state if it hasn't failed, or "gone"."""
        k = self._keys
        of_phases = [key for phase in phases for key in (k.winners(phase), k.totals(phase))]
        of_phases += [*self._shuffles(phases), k.parts] if fresh else []
        keys = [k.run, k.pending, k.leases, k.attempts, k.tries, k.holders, k.backups, k.events, *of_phases, k.end]
        described = [word for phase in phases for word in (phase.name, phase.tasks)]
        how = "fresh" if fresh else ""
        return str(self._call("resume", keys, spec, how, k.lease_prefix, PHASE_STRIDE, *described))

    def drop(self, phases: Sequence[Phase], *, skipped: int) -> str:
        """Return "DROPPED", the run's state, if it hasn't failed, or "gone"; `skipped`: by those who are kept."""
        k = self._keys
        of_phases = [key for each in phases[:-1] for key in (k.winners(each), k.totals(each), k.durations(each))]
        return str(self._call("drop", [k.run, *of_phases, *self._shuffles(phases)], skipped, phases[-1].step + 1))

    def tell(self, what: str, subject: str, note: str) -> str:
        """Return "TOLD" or "GONE"."""
        return str(self._call("tell", [self._keys.run, self._keys.events], what, subject, note))

    def _shuffles(self, phases: Sequence[Phase]) -> list[str]:
        return [self._keys.shuffle(phase.step, reducer) for phase in phases[1:] for reducer in range(phase.tasks)]

    def _of_task(self, attempt: AttemptId) -> list[str]:
        k, task = self._keys, attempt.task
        return [k.run, k.winners(task), k.pending, k.leases, k.lease(attempt), k.attempts, k.tries]

    def _at_the_end_of(self, attempt: AttemptId) -> list[str]:
        k = self._keys
        return [*self._of_task(attempt), k.totals(attempt.task), k.events, k.backups, k.holders]


def _calls_of_write(fields: dict[str, dict[str, bytes]]) -> Iterator[tuple[list[str], list[Any]]]:
    """Yield shuffle hashes, and what to write into them, for one call after the other."""
    shuffles: list[str] = []
    arguments: list[Any] = []
    size = 0
    for shuffle, field, data in ((shuffle, *chunk) for shuffle, chunks in fields.items() for chunk in chunks.items()):
        if size and size + len(data) > _CALL_BYTES:
            yield shuffles, arguments
            shuffles, arguments, size = [], [], 0
        if shuffle not in shuffles[-1:]:
            shuffles.append(shuffle)
        arguments += (1 + len(shuffles), field, data)
        size += len(data)
    yield shuffles, arguments


def _text(reply: Any) -> Any:
    if isinstance(reply, bytes):
        return reply.decode()
    return [_text(part) for part in reply] if isinstance(reply, list) else reply


def _again_without_script(call: Callable[[], Any]) -> Any:
    """Call, and call again if the server has forgotten the script between being sent it and being asked to run it."""
    for _ in range(_FORGETFUL):
        try:
            return call()
        except redis.exceptions.NoScriptError:
            continue
    return call()
