"""A run's state as a whole: from its creation to nothing left, and what can be seen of it between."""

from __future__ import annotations

import msgspec
import pytest

from rqmr import keys
from rqmr.errors import AttemptEnded, MixedKeysError, RefusedError, RqmrError
from rqmr.facts import PhaseFacts
from rqmr.model import Ask, Failure, Kind, Outcome, Phase, Piece, RunState, Settings, Split, TaskId
from rqmr.state import State

#: A reader whose own task isn't committed.
NOBODY = TaskId(9, Kind.REDUCE, 0)

# --- create -------------------------------------------------------------------------------------------------------


def test_a_new_run_has_its_maps_pending(run):
    """A run that was created can be claimed from at once."""
    facts = run.state.facts(workers=3)

    assert (facts.state, facts.phase, facts.workers) == (RunState.RUNNING, 0, 3)
    assert 0 < facts.started_ms <= facts.now_ms
    maps, reduces = run.spec.phases
    assert facts.phases == (
        PhaseFacts(maps, 0, 3, 0, 0, 0, 0, 0, facts.started_ms),
        PhaseFacts(reduces, 0, 0, 0, 0, 0, 0, 0, 0),
    )
    assert (facts.running, facts.tickets, facts.backups) == ((), {}, frozenset())
    assert (facts.median_ms, facts.failure) == (0, None)


def test_a_worker_reads_back_what_the_driver_wrote(make_run):
    """Spec, splits and code travel unchanged."""
    settings = Settings(encoding="latin-1", decode_errors="strict", format="jsonl", memory=1 << 20)
    params = {"pattern": "Ünï", "limit": 2**63 - 1, "words": ["a", None]}
    run = make_run(maps=2, reducers=3, params=params, settings=settings)

    seen = State(run.redis, run.spec.run)

    assert seen.spec == run.spec
    assert seen.package() == b"the code"
    assert seen.splits([1])[1] == Split((Piece("1.txt", b"/in/1.txt", 0, 100, 100),))


def test_a_run_of_thousands_of_maps_is_whole(make_run):
    """It is written in batches, of which none is left out."""
    run = make_run(maps=2_345)

    assert run.line() == [str(task) for task in run.spec.tasks(0)]
    assert run.redis.hlen(run.keys.splits) == 2_345
    assert run.state.splits([2_344])[2_344].pieces[0].name == "2344.txt"


def test_a_full_server_takes_no_new_run(make_run, redis, maxmemory):
    """It is told with what is used, and nothing of the run is left."""
    maxmemory(1 << 20)
    redis.ping()

    with pytest.raises(
        RefusedError, match=r"the Redis server is full \(\d+\.\d of 1\.0 MiB used\): it takes no new run"
    ):
        make_run()

    assert not list(redis.scan_iter("rqmr:wordcount*"))
    assert not redis.zcard("rqmr:runs")
    maxmemory(0)
    assert make_run().claim()


def test_a_full_server_resumes_no_run(run, maxmemory):
    """As a resume writes the code again."""
    run.end("failed")
    maxmemory(1)
    with pytest.raises(RefusedError, match="it takes no new run"):
        run.state.resume(run.spec, b"the code", fresh=False)
    maxmemory(0)
    assert run.state.resume(run.spec, b"the code", fresh=False)


def test_the_runs_own_hash_is_written_last(make_run, redis):
    """While it is missing there is no run, so a driver that dies meanwhile has created none."""
    with redis.monitor() as monitor:
        run = make_run(maps=2_000)
        redis.echo("done")
        commands = []
        while not (command := monitor.next_command()["command"]).startswith("ECHO"):
            commands.append(command.split())

    writes = [command[1] for command in commands if command[0] in ("SET", "HSET", "ZADD", "PEXPIRE")]
    assert len(writes) >= 8
    assert writes[-2:] == [run.keys.run] * 2
    assert run.keys.run not in writes[:-2]


def test_creating_again_changes_nothing(make_run):
    """redis-py repeats what got no answer."""
    run = make_run()
    started = run.state.facts().started_ms
    before = run.dump(run.keys.run)

    again = make_run()

    assert again.dump(run.keys.run) == before
    assert again.state.facts().started_ms >= started


# --- what is not there --------------------------------------------------------------------------------------------


def test_a_run_of_another_protocol_is_refused_with_what_to_do(run):
    """A worker of another release could misread the run."""
    run.redis.hset(run.keys.run, "spec", msgspec.msgpack.encode({"protocol": 99, "all": "else differs"}))

    with pytest.raises(RqmrError, match=r"wordcount-7k2p9x speaks protocol 99, this worker 4: install the same rqmr"):
        _ = State(run.redis, run.spec.run).spec


def test_a_run_that_is_gone_has_no_spec_split_or_facts(run):
    """Nobody can tell it from one that never was."""
    run.end("gone")

    assert run.state.facts() is None
    with pytest.raises(AttemptEnded, match="no split 0"):
        run.state.splits([0])
    with pytest.raises(AttemptEnded, match="there is no run wordcount-7k2p9x"):
        _ = State(run.redis, run.spec.run).spec


def test_code_that_is_gone_is_told(run):
    """The error says what to do."""
    run.redis.delete(keys.code(run.spec.code))

    with pytest.raises(RqmrError, match="the code of run wordcount-7k2p9x is gone from Redis; run the job again"):
        run.state.package()


# --- facts --------------------------------------------------------------------------------------------------------


def test_facts_tell_each_phase_apart(run):
    """What runs, waits and is done is counted in its own phase."""
    # Given a run in its reduce phase, with one reduce task running and a map opened again and running
    won = run.commit_phase()
    run.claim("w1")
    task, claim = next(iter(won.items()))
    run.state.reopen(claim.attempt, run.state.winners(run.spec.phases[0])[task][1], NOBODY)
    run.claim("w2")

    facts = run.state.facts()

    assert [(each.committed, each.pending, each.running) for each in facts.phases] == [(2, 0, 1), (0, 1, 1)]
    assert {(str(each.id), each.worker) for each in facts.running} == {("s0-m0000-a2", "w2"), ("s0-r0000-a1", "w1")}


def test_lost_tasks_are_pending_in_their_own_phase(run):
    """An urgent place is still a place in the phase."""
    run.commit_phase()
    run.lose(run.claim(named="s0-r0001"))

    assert [each.pending for each in run.state.facts().phases] == [0, 2]


def test_the_median_is_that_of_the_current_phase(run):
    """How long a map takes tells nothing about a reduce task."""
    for age_ms in (1_000, 9_000, 5_000):
        claim = run.claim()
        run.commit(msgspec.structs.replace(claim, started_ms=claim.started_ms - age_ms))
    assert 5_000 <= run.state.facts().median_ms < 6_000

    run.state.advance(0)
    assert run.state.facts().median_ms == 0

    run.commit_phase()
    assert run.state.facts().median_ms < 1_000  # all is committed: that of the last one


# --- winners ------------------------------------------------------------------------------------------------------


def test_winners_come_in_the_order_of_their_tasks_with_their_counters(run):
    """Whatever the order of the commits; a task that ran twice counts once."""
    claims = [run.claim(), run.claim(), run.claim()]
    for claim in reversed(claims):
        run.commit(claim, run.write(claim, 0, counters={"maps": {"ran": 1}}))
    first, outcome = run.state.winners(run.spec.phases[0])[TaskId(0, Kind.MAP, 0)]
    run.state.reopen(first, outcome, NOBODY)
    again = run.claim()
    run.commit(again, run.write(again, 1, counters={"maps": {"ran": 1}}))

    winners = run.state.winners(run.spec.phases[0])

    assert [str(task) for task in winners] == ["s0-m0000", "s0-m0001", "s0-m0002"]
    assert [str(attempt) for attempt, _ in winners.values()] == ["s0-m0000-a2", "s0-m0001-a1", "s0-m0002-a1"]
    assert sum(outcome.counters["maps"]["ran"] for _, outcome in winners.values()) == 3
    assert [outcome.has_partition(0) for _, outcome in winners.values()] == [False, True, True]


def test_an_outcome_with_newlines_in_it_is_read_back_whole(run):
    """A newline parts attempt and outcome; those inside the outcome are its own."""
    claim = run.claim()
    outcome = run.write(claim, counters={"a\nb\n": {"\n": 10}}, records=10)

    run.commit(claim, outcome)

    assert list(run.state.winners(run.spec.phases[0]).values()) == [(claim.attempt, outcome)]
    assert run.commit(claim, outcome) == ["COMMITTED", 1]


# --- the script's words as errors ---------------------------------------------------------------------------------


def test_a_commit_that_is_refused_says_why(run):
    """Each refusal is an error of its own kind."""
    first, second = run.claim("w1", named="s0-m0000"), run.claim("w1", named="s0-m0001")
    run.state.back_up(first.attempt, "w1")
    backup = run.claim("w2", named="s0-m0000")
    run.state.commit(first, run.write(first, 0, key_type="str"))

    with pytest.raises(AttemptEnded, match="s0-m0000-a2 is stale"):
        run.state.commit(backup, run.write(backup, 0, key_type="str"))
    with pytest.raises(MixedKeysError, match=r"s0-m0001 .*int, .*others .*str"):
        run.state.commit(second, run.write(second, 0, key_type="int"))
    outcome = run.write(second, 0, 1, key_type="str")
    run.redis.delete(run.keys.shuffle(0, 1))
    with pytest.raises(RqmrError, match="s0-m0001-a1: a segment that was written is gone"):
        run.state.commit(second, outcome)
    run.state.finish(RunState.CANCELLED)
    with pytest.raises(AttemptEnded, match="s0-m0001-a1 is ended"):
        run.state.commit(second, outcome)


# --- events -------------------------------------------------------------------------------------------------------


def test_events_are_read_on_from_a_position(run):
    """A view that polls sees each change of state once."""
    position, events = run.state.events()
    assert (position, events) == ("0", [])

    claim = run.claim("w1")
    run.commit(claim)
    position, events = run.state.events(position)
    assert [(event.what, event.subject, event.note) for event in events] == [
        ("claimed", "s0-m0000-a1", "by w1"),
        ("committed", "s0-m0000-a1", "in 0.0 s"),
    ]
    assert run.state.facts().started_ms <= events[0].at_ms <= events[1].at_ms <= run.state.facts().now_ms

    assert run.state.events(position) == (position, [])
    run.fail(run.claim("w2"), "KeyError: 'ä'")
    _, events = run.state.events(position)
    assert [(event.what, event.note) for event in events] == [("claimed", "by w2"), ("failed", "KeyError: 'ä'")]


def test_only_about_the_last_thousand_events_are_kept(make_run):
    """A long run doesn't fill Redis with its past."""
    run = make_run(maps=1_000)
    while claim := run.claim():
        run.commit(claim)

    assert 1_000 <= run.redis.xlen(run.keys.events) < 1_300


# --- keys and their lifetime --------------------------------------------------------------------------------------


def live(run) -> set[str]:
    """Go through all that can happen in a run of two steps; return every key that was there at some time."""
    seen: set[str] = set()

    def look() -> None:
        for key in run.redis.scan_iter("*"):
            assert run.redis.pttl(key) != -1, f"{key} has no TTL"
            seen.add(key.decode())

    def commit(claim) -> None:
        phase = run.spec.phase_of(claim.attempt.task) + 1
        partitions = range(run.spec.phases[phase].tasks) if phase < len(run.spec.phases) else ()
        outcome = run.write(claim, *partitions, key_type="str")
        look()
        assert run.commit(claim, outcome)[0] == "COMMITTED"
        look()

    look()
    run.scripts.drive("driver", lease_ms=10_000)
    [(ticket, named), *_] = run.state.tickets.issue(4)
    look()
    for phase in run.spec.phases:
        number = run.state.facts().phase
        asked = msgspec.msgpack.encode(Ask("s0-m0000-a1.1", b"/in", "in", 0, 4))
        assert run.scripts.ask([asked]) == "ASKED"
        look()
        assert run.scripts.ship(asked, run.keys.shipment("1"), b"dtext", lasts_ms=1000) == "SHIPPED"
        look()
        run.redis.delete(run.keys.shipment("1"))
        run.scripts.write({run.keys.parts: {"0.1.0": b"text"}})
        look()
        failed = run.claim(ticket=ticket, named=named)
        look()
        run.fail(failed)
        look()
        run.lose(run.claim())
        look()
        run.state.release(run.claim().attempt)
        slow = run.claim("slow")
        run.renew(slow)
        run.state.back_up(slow.attempt, "slow")
        look()
        backup = run.claim("fast", named=str(slow.attempt.task))
        commit(backup)
        run.state.release(slow.attempt)
        winner, outcome = run.state.winners(phase)[backup.attempt.task]
        run.state.reopen(winner, outcome, NOBODY)
        look()
        while claim := run.claim():
            look()
            commit(claim)
        assert run.state.advance(number) == "ADVANCED"
        look()
    return seen


STEPS = (Phase(0, Kind.MAP, 2), Phase(0, Kind.REDUCE, 2), Phase(1, Kind.REDUCE, 3))


def test_a_run_writes_the_keys_that_keys_py_lists_and_no_others(make_run):
    """Every key in a run's whole life is listed, every listed one is used, and none was without TTL at any time."""
    run = make_run(phases=STEPS)

    seen = live(run)

    leases = {key for key in seen if key.startswith(run.keys.lease_prefix)}
    assert leases
    assert seen - leases - {run.keys.shipment("1")} == {
        *run.keys.all(run.spec.phases),
        keys.code(run.spec.code),
        keys.RUNS,
    }


@pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.CANCELLED, RunState.FAILED])
def test_unlink_leaves_nothing_but_the_code(make_run, state):
    """The code may be another run's too; all else of the run is gone, and nothing of another run."""
    run, other = make_run(phases=STEPS), make_run(run="wordcount-7k2p9y")
    others = {key for key in other.dump() if key.startswith(other.keys.run)}
    live(run)
    run.state.finish(state, Failure("because"))

    run.state.unlink()

    assert set(run.dump()) == {keys.code(run.spec.code), *others}
    run.state.unlink()  # a repeat does no harm
    assert set(run.dump()) == {keys.code(run.spec.code), *others}


def test_unlink_in_the_middle_of_a_run_leaves_nothing(run):
    """Running attempts lose their leases, and what they say afterwards brings nothing back."""
    claims = [run.claim(), run.claim()]
    outcome = run.write(claims[0], 0, 1)

    run.state.unlink()

    assert set(run.dump()) == {keys.code(run.spec.code)}
    assert run.renew(claims[0]) == "ENDED"
    assert run.commit(claims[0], outcome) == ["ENDED"]
    assert run.fail(claims[1]) == "ENDED"
    run.state.touch()
    assert set(run.dump()) == {keys.code(run.spec.code)}


def test_touch_lets_every_key_live_for_another_keep(make_run):
    """All but the leases, which live as long as who holds them."""
    run = make_run(phases=STEPS)
    live(run)
    run.scripts.drive("driver", lease_ms=10_000)
    names = [name for name in run.dump() if name not in (run.keys.driver, run.keys.standby)]
    for name in names:
        run.redis.pexpire(name, 1_000)

    run.state.touch()

    assert all(run.redis.pttl(name) > 50_000 for name in names)
    assert run.redis.pttl(run.keys.driver) <= 10_000


@pytest.mark.parametrize("move", ["fail", "expire", "release", "reopen", "back_up", "advance"])
def test_a_line_that_was_empty_has_a_lifetime_again(make_run, move):
    """Redis drops a key with its last member, and the TTL with it; who fills the line again sets it."""
    run = make_run(maps=1)
    claim = run.claim()
    assert not run.redis.exists(run.keys.pending)
    outcome = Outcome(10, 100, 0, {})
    if move in ("reopen", "advance"):
        run.commit(claim, outcome)

    moves = {
        "fail": lambda: run.fail(claim),
        "expire": lambda: run.lose(claim),
        "release": lambda: run.state.release(claim.attempt),
        "reopen": lambda: run.state.reopen(claim.attempt, outcome, NOBODY),
        "back_up": lambda: run.state.back_up(claim.attempt, "w1"),
        "advance": lambda: run.state.advance(0),
    }
    moves[move]()

    assert 50_000 < run.redis.pttl(run.keys.pending) <= run.spec.keep_ms


def test_a_write_lets_what_it_writes_live_for_another_keep(run):
    """A run that goes on never loses the keys that it writes."""
    claim = run.claim()
    written = [run.keys.attempts, run.keys.tries, run.keys.leases, run.keys.claims, run.keys.events]
    for name in written:
        run.redis.pexpire(name, 1_000)

    run.claim()

    assert all(run.redis.pttl(name) > 50_000 for name in written)
    assert run.commit(claim, Outcome(1, 1, 0, {})) == ["COMMITTED", 1]
