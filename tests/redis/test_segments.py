"""Segments in Redis: what an attempt writes is what the reduce tasks read, if it won."""

from __future__ import annotations

import threading

import pytest

from rqmr.errors import AttemptEnded, PhaseReopened
from rqmr.keys import segment_field
from rqmr.model import Kind, Outcome, Phase, TaskId, bitmap
from rqmr.segments import RedisSegments, RedisSink
from rqmr.tasks import Place

#: A reader whose own task isn't committed.
NOBODY = TaskId(9, Kind.REDUCE, 0)

FIRST = TaskId(0, Kind.REDUCE, 0)
SECOND = TaskId(0, Kind.REDUCE, 1)


def test_what_is_written_is_read_back(run):
    """Each reduce task finds the chunks of each winner that has any for it, in the order of the maps."""
    # Given two maps with segments of several chunks, and one with nothing
    contents = {
        (0, 0): [b"\x02head", b"more", bytes(range(256))],
        (0, 1): [b"\x00alone"],
        (2, 1): [b"\x01h", b""],
    }
    for claim in [run.claim(), run.claim(), run.claim()]:
        sink = RedisSink(run.state, claim.attempt)
        mine = {reducer: chunks for (index, reducer), chunks in contents.items() if index == claim.attempt.task.index}
        for reducer, chunks in mine.items():
            for number, data in reversed(list(enumerate(chunks))):  # chunk 0 is written last
                sink.write(reducer, number, data)
        sink.flush()
        run.commit(claim, Outcome(1, 1, 0, {}, bitmap(set(mine))))

    # Then each reducer reads its own
    first, second = RedisSegments(run.state, FIRST), RedisSegments(run.state, SECOND)
    assert (first.producers(), second.producers()) == ([0], [0, 2])
    assert first.chunks([(0, 0), (0, 2), (0, 1)]) == [b"\x02head", bytes(range(256)), b"more"]
    assert second.chunks([(2, 1), (0, 0), (2, 0)]) == [b"", b"\x00alone", b"\x01h"]


def test_a_task_that_has_nothing_for_a_reducer_is_not_missing(run):
    """Absent is not lost: the winner's bitmap tells them apart."""
    for _ in range(3):
        run.commit(run.claim())

    assert RedisSegments(run.state, FIRST).producers() == []


def test_only_winners_are_read(run):
    """A loser's chunks may lie in the same hash; nobody asks for them."""
    loser = run.claim("w1", named="s0-m0000")
    run.write(loser, 0)
    run.state.back_up(loser.attempt, "w1")
    winner = run.claim("w2", named="s0-m0000")
    run.commit(winner, run.write(winner, 0))
    run.commit(run.claim())
    run.commit(run.claim())

    segments = RedisSegments(run.state, FIRST)
    assert segments.producers() == [0]
    assert segments.chunks([(0, 0)]) == [b"s0-m0000-a2 for 0"]


def test_a_chunk_that_is_missing_is_none(run):
    """The reader decides what that means: its task must run again."""
    claim = run.claim()
    run.commit(claim, run.write(claim, 0, 1))
    run.commit(run.claim())
    run.commit(run.claim())
    run.redis.hdel(run.keys.shuffle(0, 0), segment_field(0, 1, 0))
    run.redis.delete(run.keys.shuffle(0, 1))

    segments = RedisSegments(run.state, FIRST)
    assert segments.producers() == RedisSegments(run.state, SECOND).producers() == [0]
    assert segments.chunks([(0, 0), (0, 1)]) == RedisSegments(run.state, SECOND).chunks([(0, 0), (0, 1)]) == [None] * 2


def test_all_producers_are_found_when_there_are_many(make_run):
    """Those that have nothing for the reducer are left out."""
    run = make_run(maps=150, reducers=1)
    while claim := run.claim():
        run.commit(claim, run.write(claim, *([0] if claim.attempt.task.index % 75 else [])))

    segments = RedisSegments(run.state, FIRST)

    assert segments.producers() == [index for index in range(150) if index % 75]
    heads = segments.chunks([(producer, 0) for producer in segments.producers()])
    assert heads == [f"s0-m{index:04d}-a1 for 0".encode() for index in segments.producers()]


def test_a_missing_winner_stops_the_reader_before_it_begins(run):
    """A map that was opened again may have a segment for this reducer."""
    won = run.commit_phase()
    task, claim = next(iter(won.items()))
    run.state.reopen(claim.attempt, run.state.winners(run.spec.phases[0])[task][1], NOBODY)

    with pytest.raises(PhaseReopened, match="s0-m"):
        RedisSegments(run.state, FIRST)


def test_a_later_step_reads_what_the_reduce_tasks_before_it_wrote(make_run):
    """The reduce tasks of a step write the segments of the next one, under its number."""
    run = make_run(phases=(Phase(0, Kind.MAP, 1), Phase(0, Kind.REDUCE, 2), Phase(1, Kind.REDUCE, 1)))
    run.commit_phase()
    for _ in range(2):
        claim = run.claim()
        run.commit(claim, run.write(claim, 0))

    segments = RedisSegments(run.state, TaskId(1, Kind.REDUCE, 0))

    assert segments.producers() == [0, 1]
    assert segments.chunks([(0, 0), (1, 0)]) == [b"s0-r0000-a1 for 0", b"s0-r0001-a1 for 0"]
    assert not run.redis.exists(run.keys.shuffle(0, 0))


def test_discard_removes_an_attempts_own_chunks_and_no_others(run):
    """The loser throws its output away, and leaves that of all other attempts and tasks."""
    # Given three attempts, two of one task, whose chunks lie in the same hashes
    loser = run.claim("w1", named="s0-m0000")
    run.state.back_up(loser.attempt, "w1")
    winner, neighbour = run.claim("w2", named="s0-m0000"), run.claim("w2", named="s0-m0001")
    run.write(winner, 0, 1)
    run.write(neighbour, 0, 1)
    for reducer in (0, 1):  # what the fields of an eleventh attempt would be
        run.redis.hset(run.keys.shuffle(0, reducer), segment_field(0, 11, 0), b"eleventh")
    before = run.dump()

    # When the loser has written more than one chunk, some of them at once and some later
    sink = RedisSink(run.state, loser.attempt)
    for number in range(250):
        sink.write(0, number, b"x")
    sink.flush()
    sink.write(1, 0, b"x")
    sink.flush()
    assert run.dump() != before

    # Then after discarding, once or twice, all is as before
    sink.discard()
    assert run.dump() == before
    sink.discard()
    assert run.dump() == before


def test_chunks_are_sent_when_enough_are_held(run):
    """A big segment doesn't wait in the worker's memory for the end."""
    claim = run.claim()
    sink = RedisSink(run.state, claim.attempt)

    for number in range(1, 7):
        sink.write(0, number, bytes(1 << 20))

    assert run.redis.hlen(run.keys.shuffle(0, 0)) >= 4
    sink.flush()
    assert run.redis.hlen(run.keys.shuffle(0, 0)) == 6


def test_flushing_nothing_is_no_error(run):
    """A task that shuffled nothing has nothing to send."""
    RedisSink(run.state, run.claim().attempt).flush()


def test_writing_for_an_ended_run_ends_the_attempt(run, ending):
    """The worker is told, and no key comes back; nor does discarding bring one."""
    sink = RedisSink(run.state, run.claim().attempt)
    run.end(ending)
    before = run.dump()

    sink.write(0, 0, b"too late")
    with pytest.raises(AttemptEnded):
        sink.flush()
    sink.discard()

    assert run.dump() == before


# --- a server that is nearly full -----------------------------------------------------------------------------------

MIB = 1 << 20


class Writer(threading.Thread):
    """An attempt that writes ten chunks of 400 KiB, as a work-horse does; its heartbeat is the test."""

    def __init__(self, run):
        super().__init__(daemon=True)
        self.claim, self.place, self.error = run.claim(), Place(), None
        self._sink = RedisSink(run.state, self.claim.attempt, self.place)
        self.outcome = Outcome(1, 1, 0, {}, bitmap({0}))
        self.start()

    def run(self):
        try:
            for number in range(10):
                self._sink.write(0, (number + 1) % 10, bytes([number]) * 400_000)
            self._sink.flush()
        except Exception as error:
            self.error = error


def used(redis):
    return redis.info("memory")["used_memory"]


def test_writing_waits_for_memory_and_is_whole_in_the_end(run, redis, maxmemory):
    """What doesn't fit is not sent, so nobody is refused anything; when others have freed some, it goes on."""
    redis.config_resetstat()
    redis.setrange("ballast", 8 * MIB, b"x")  # made there: what is being received counts, too
    maxmemory(used(redis) + 3 * MIB)
    writer = Writer(run)
    run.wait_until(lambda: writer.place.waits and redis.hlen(run.keys.shuffle(0, 0)))
    written = redis.hlen(run.keys.shuffle(0, 0))
    assert 1 <= written <= 6
    assert used(redis) < redis.info("memory")["maxmemory"] - MIB // 2

    redis.delete("ballast")
    writer.join(10)

    assert writer.error is None
    assert not writer.place.waits
    assert redis.hlen(run.keys.shuffle(0, 0)) == 10
    assert run.commit(writer.claim, writer.outcome) == ["COMMITTED", 1]
    assert "errorstat_OOM" not in redis.info("errorstats")


def test_who_waits_for_memory_hears_when_to_stop(run, redis, maxmemory):
    """Its work isn't wanted any more."""
    maxmemory(used(redis) + MIB // 2)
    writer = Writer(run)
    run.wait_until(lambda: writer.place.waits)

    writer.place.stop()
    writer.join(5)

    assert isinstance(writer.error, AttemptEnded)


def test_a_write_that_is_refused_is_repeated(run, redis, maxmemory):
    """So little that nobody asked before, or the server may not be asked."""
    claim, place = run.claim(), Place()
    sink = RedisSink(run.state, claim.attempt, place)
    for number in (1, 0):
        sink.write(0, number, b"little")
    maxmemory(1)
    freed = threading.Timer(0.3, lambda: redis.config_set("maxmemory", 0))
    freed.start()

    sink.flush()

    freed.join()
    assert redis.hlen(run.keys.shuffle(0, 0)) == 2
    assert not place.waits


def test_what_is_sent_at_a_time_leaves_room_for_all_who_may_write(run, redis, maxmemory):
    """Several attempts look at the same moment, and what they then send has room."""
    others = [redis.client() for _ in range(60)]
    sink = RedisSink(run.state, run.claim().attempt)
    maxmemory(used(redis) + 8 * MIB)
    with redis.monitor() as monitor:
        for number in range(30):
            sink.write(0, (number + 1) % 30, bytes(20_000))
        sink.flush()
        redis.echo("done")
        told = _until_done(monitor)
    for other in others:
        other.close()
    looks = sum(command.startswith("INFO memory") for command in told)
    assert 3 <= looks <= 15, "a share is some 80 to 180 KB"
    assert not any("rqmr:writer" in command for command in told)
    assert redis.hlen(run.keys.shuffle(0, 0)) == 30


def test_a_chunk_that_is_more_than_a_share_is_sent_when_nobody_else_sends_one(run, redis, maxmemory):
    """A few of them at once would fill the server while it receives them."""
    others = [redis.client() for _ in range(60)]
    redis.set("rqmr:writer", "somebody else", px=60_000)
    maxmemory(used(redis) + 8 * MIB)
    writer = Writer(run)
    run.wait_until(lambda: run.redis.info("commandstats").get("cmdstat_set", {}).get("calls", 0) > 3)
    assert not redis.hlen(run.keys.shuffle(0, 0))
    assert not writer.place.waits, "not for memory"

    redis.delete("rqmr:writer")
    run.wait_until(lambda: redis.hlen(run.keys.shuffle(0, 0)) > 3)
    maxmemory(0)
    writer.join(5)
    for other in others:
        other.close()

    assert redis.hlen(run.keys.shuffle(0, 0)) == 10
    assert not redis.exists("rqmr:writer")


def _until_done(monitor):
    told = []
    while "done" not in (command := monitor.next_command()["command"]):
        told.append(command[:40])
    return told
