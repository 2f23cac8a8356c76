"""Whatever dies in the middle of a run, it ends with the oracle's output, byte for byte and counter for counter."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rq
from bench import CUT, Bench, Run, horse_of, is_alive
from harness import Workers, signal_all, wait_until

import rqmr


def horse_in_map(workers: Workers, run: Run) -> int:
    """A work-horse of the first worker in the middle of a map."""
    run.wait_until(
        lambda facts: any(each.worker == "worker-1" for each in facts.running), what="the first worker is at work"
    )
    return horse_of(workers, workers.processes[0])


# --- processes that are killed ------------------------------------------------------------------------------------


def test_a_work_horse_that_is_killed_in_a_map_costs_a_lease(workers: Workers, bench: Bench) -> None:
    workers.start(2)
    bench.write(6)
    run = bench.start("slow", seconds=0.05)
    os.kill(horse_in_map(workers, run), signal.SIGKILL)
    run.wait_for("lost")
    bench.assert_right(run, "slow")


def test_a_work_horse_that_is_killed_in_a_reduce_costs_a_lease(workers: Workers, bench: Bench) -> None:
    workers.start(2)
    bench.write(3, lines=6)
    run = bench.start("slow", reduce_seconds=0.01)
    run.wait_until(lambda facts: facts.phase == 1 and facts.running, what="reduces run")
    os.kill(horse_in_map(workers, run), signal.SIGKILL)
    assert all("-r" in attempt for attempt in run.wait_for("lost"))
    bench.assert_right(run, "slow")


def test_the_work_horse_of_a_killed_worker_goes_on_and_its_work_counts(workers: Workers, bench: Bench) -> None:
    workers.start(2)
    bench.write(6)
    run = bench.start("slow", seconds=0.05)
    horse = horse_in_map(workers, run)
    workers.processes[0].kill()
    assert is_alive(horse), "a work-horse has a process group of its own"
    bench.assert_right(run, "slow")
    assert not run.events("lost"), "it renews its lease itself"
    wait_until(lambda: not is_alive(horse), timeout=10, what="it ends with the run")


def test_a_worker_that_is_killed_with_its_work_horse_costs_a_lease(workers: Workers, bench: Bench) -> None:
    workers.start(2)
    bench.write(6)
    run = bench.start("slow", seconds=0.05)
    horse_in_map(workers, run)
    workers.kill(workers.processes[0])
    run.wait_for("lost")
    bench.assert_right(run, "slow")


def test_all_workers_may_die_as_long_as_a_new_one_starts(workers: Workers, bench: Bench) -> None:
    workers.start(2)
    bench.write(6)
    run = bench.start("slow", seconds=0.04)
    run.wait_until(lambda facts: facts.phases[0].committed >= 1 and len(facts.running) == 2, what="both are at work")
    for worker in workers.processes[:2]:
        workers.kill(worker)
    run.wait_until(lambda facts: not facts.running and facts.phases[0].pending, what="all attempts are lost")
    workers.start(1)
    bench.assert_right(run, "slow")


@pytest.mark.parametrize(("how", "where"), [("exit", "map"), ("segfault", "reduce")])
def test_user_code_that_ends_its_process_once_is_run_again(
    how: str, where: str, workers: Workers, bench: Bench
) -> None:
    workers.start(2)
    bench.write(6, "crash")
    run = bench.start("crash", how=how, where=where, times=1)
    bench.assert_right(run, "crash")
    assert (bench.marked("crashed"), bench.marked("executed")) == (1, 2)
    assert len(run.events("lost")) == 1


def test_lost_attempts_do_not_use_up_the_tries_of_the_code(workers: Workers, bench: Bench) -> None:
    """One more is lost than may fail."""
    workers.start(2)
    bench.write(3, "crash")
    config = msgspec.structs.replace(CUT, max_failed=1)
    run = bench.start("crash", config, how="exit", times=2)
    bench.assert_right(run, "crash", config)
    assert (bench.marked("crashed"), bench.marked("executed")) == (2, 3)
    assert len(run.events("lost")) == 2


def test_code_that_ends_its_process_each_time_fails_the_run_in_the_end(workers: Workers, bench: Bench) -> None:
    workers.start(1)
    bench.write(3, "crash")
    run = bench.start("crash", msgspec.structs.replace(CUT, max_lost=2), times=99)
    with pytest.raises(rqmr.RunFailed, match=r"was lost 2 times: .*does it run out of memory, or end its process"):
        run.result()
    assert bench.marked("executed") == 2


def test_a_work_horse_that_was_stopped_until_the_run_was_over_does_no_harm(
    workers: Workers, bench: Bench, redis: Any
) -> None:
    workers.start(2)
    bench.write(4, "crash")
    run = bench.start("crash", how="stop", times=1)
    stopped = bench.pid_of("crashed")
    try:
        assert run.wait_for("lost") == [f"{task_with('crash')}-a1"]
        bench.assert_right(run, "crash")
    finally:
        signal_all([stopped], signal.SIGCONT)  # RQ may have killed it, told so at the end of the run
    wait_until(lambda: not is_alive(stopped), timeout=10, what="it ends, as the run is over")
    assert list(redis.scan_iter(f"rqmr:{run.id}*")) == [f"rqmr:{run.id}:end".encode()], "it wrote after the run's end"


def test_a_commit_that_comes_too_late_changes_nothing(workers: Workers, bench: Bench, redis: Any) -> None:
    """The stopped attempt wakes up while the run still runs, and its task has another winner."""
    workers.start(3)
    bench.write(4, "crash")
    (bench.inputs / "99.txt").write_text("gate\n")
    run = bench.start("crash", how="stop", times=1, gate="gate")
    late, winner = (f"{task_with('crash')}-a{number}" for number in (1, 2))
    stopped = bench.pid_of("crashed")
    try:
        run.wait_until(lambda _: winner in run.events("committed"), what="another attempt wins")
    finally:
        os.kill(stopped, signal.SIGCONT)
    attempts = f"rqmr:{run.id}:attempts"
    wait_until(lambda: redis.hget(attempts, late) == b"stale", timeout=10, what="the late one hears of it")
    bench.open_gate()
    bench.assert_right(run, "crash")
    assert late not in run.events("committed")
    assert bench.marked("executed") == 2


def test_an_attempt_that_was_lost_and_comes_back_first_wins(workers: Workers, bench: Bench) -> None:
    """Lost is not dead: with no other worker free, its work is taken."""
    workers.start(1)
    bench.write(3, "crash")
    run = bench.start("crash", how="stop", times=1)
    stopped = bench.pid_of("crashed")
    try:
        run.wait_for("lost")
    finally:
        os.kill(stopped, signal.SIGCONT)
    bench.assert_right(run, "crash")
    assert bench.marked("executed") == 1
    assert f"{task_with('crash')}-a1" in run.events("committed")


def task_with(special: str) -> str:
    """The map task of the file that `Bench.write` puts the special word into."""
    return "s0-m0002"


def test_a_mapper_that_holds_the_interpreter_for_longer_than_its_lease_is_not_wasted(
    workers: Workers, bench: Bench
) -> None:
    """It can't renew its lease meanwhile; its work counts, as long as nobody else's came first."""
    workers.start(1)
    bench.write(3, "crash")
    run = bench.start("crash", how="hold", times=1)
    bench.assert_right(run, "crash")
    assert run.events("lost") == [f"{task_with('crash')}-a1"]
    assert f"{task_with('crash')}-a1" in run.events("committed")
    assert bench.marked("executed") == 1


def test_a_worker_that_is_told_to_stop_ends_its_turn_and_the_run_goes_on(workers: Workers, bench: Bench) -> None:
    """What an orchestrator does to a node: SIGTERM, and patience."""
    leaving, _ = workers.start(2)
    bench.write(6)
    run = bench.start("slow", seconds=0.05)
    horse_in_map(workers, run)
    leaving.terminate()
    bench.assert_right(run, "slow")
    assert leaving.wait(10) == 0
    assert not run.events("lost")


# --- user code that raises ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "where", "message"),
    [
        ("error", "map", "ValueError: this is the job's own error"),
        ("error", "reduce", "ValueError: this is the job's own error"),
        ("quit", "map", "SystemExit: the job calls sys.exit"),
        ("interrupt", "map", "KeyboardInterrupt: the job's own interrupt"),
        ("odd", "map", "FileNotFoundError: a name that is no text"),
    ],
)
def test_code_that_always_raises_fails_the_run_after_four_attempts(
    how: str, where: str, message: str, workers: Workers, bench: Bench
) -> None:
    workers.start(2)
    bench.write(5, "crash")
    run = bench.start("crash", msgspec.structs.replace(CUT, max_lost=2), how=how, times=1000, where=where)
    with pytest.raises(rqmr.RunFailed, match=message) as caught:
        run.result()
    assert bench.marked("executed") == 4
    failure = caught.value.failure
    assert "crash.py" in failure.traceback
    assert Path(failure.source).name == ("02.txt" if where == "map" else "")
    assert failure.record[-6:-1] == "crash"
    out = bench.directory / "out0"
    assert [path.name for path in out.iterdir()] == [f".rqmr-{run.id}"], "what a resume needs"


def test_code_that_raises_and_then_succeeds_is_a_success(workers: Workers, bench: Bench) -> None:
    workers.start(2)
    bench.write(5, "crash")
    run = bench.start("crash", how="error", times=3)
    bench.assert_right(run, "crash")
    assert bench.marked("executed") == 4
    assert len(run.events("failed")) == 3


def test_what_raises_when_it_is_fused_is_tried_again_as_it_is_written(workers: Workers, bench: Bench) -> None:
    workers.start(2)
    bench.write(3)
    run = bench.start("fused")
    bench.assert_right(run, "fused")
    failed = run.events("failed")
    assert failed
    assert len(failed) == len(set(failed)), "each task once"
    assert all("-r" in attempt and attempt.endswith("-a1") for attempt in failed)


def test_what_can_not_be_tried_again_is_not_fused(workers: Workers, bench: Bench) -> None:
    workers.start(2)
    bench.write(3)
    run = bench.start("fused", msgspec.structs.replace(CUT, max_failed=1))
    bench.assert_right(run, "fused")
    assert not run.events("failed")


# --- RQ and Redis misbehave ---------------------------------------------------------------------------------------


def test_tickets_that_are_enqueued_twice_and_for_tasks_that_are_done_change_nothing(
    workers: Workers, bench: Bench, redis: Any
) -> None:
    workers.start(3)
    bench.write(8)
    run = bench.start("slow", seconds=0.02)
    queue = rq.Queue("rqmr", connection=redis)
    number = 0
    while not run.is_over:
        number += 1
        for task in ("s0-m0000", "s0-m0007", "s0-r0001", "", "s5-m0000"):
            ticket = f"{run.id}-t{1 + number % 3}"  # ids that exist, and not
            queue.enqueue("rqmr.worker.run_ticket", run.id, ticket, task, job_id=ticket, result_ttl=0, failure_ttl=60)
        time.sleep(0.05)
    assert number > 3
    bench.assert_right(run, "slow")


def test_a_ticket_for_a_run_that_is_gone_ends_quietly(workers: Workers, redis: Any) -> None:
    (worker,) = workers.start(1)
    rq_job = rq.Queue("rqmr", connection=redis).enqueue("rqmr.worker.run_ticket", "gone-234567", "gone-234567-t1", "")
    wait_until(lambda: rq_job.is_finished, timeout=10, what="it has ended well")
    assert worker.poll() is None


def test_scripts_that_the_server_forgets_are_sent_again(workers: Workers, bench: Bench, redis: Any) -> None:
    workers.start(2)
    bench.write(8)
    run = bench.start("slow", seconds=0.02, reduce_seconds=0.001)
    flushes = 0
    while not run.is_over:
        redis.script_flush()
        flushes += 1
        time.sleep(0.02)
    bench.assert_right(run, "slow")
    assert flushes > 10


def shuffle_hash(redis: Any, run: Run, field: str) -> str:
    """A shuffle hash that has that field."""
    return next(key for number in range(2) if redis.hexists(key := f"rqmr:{run.id}:s0:shuffle:{number}", field))


def test_a_map_whose_segment_vanished_runs_again(workers: Workers, bench: Bench, redis: Any) -> None:
    """Two segments of two maps go while another map holds the reduces back."""
    workers.start(2)
    bench.write(5, "gate")
    run = bench.start("slow", gate="gate")
    run.wait_until(lambda facts: facts.phases[0].committed == 4, what="all maps but one are committed")
    for field in ("0.1.0", "4.1.0"):
        assert redis.hdel(shuffle_hash(redis, run, field), field)
    bench.open_gate()
    bench.assert_right(run, "slow")
    assert sorted(run.events("reopened")) == ["s0-m0000", "s0-m0004"]
    assert {"s0-m0000-a2", "s0-m0004-a2"} <= set(run.events("committed"))


def test_maps_whose_segments_are_damaged_run_again(workers: Workers, bench: Bench, redis: Any) -> None:
    """One has a bit flipped, one lost its end, one everything."""
    workers.start(2)
    bench.write(5, "gate")
    run = bench.start("slow", gate="gate")
    run.wait_until(lambda facts: facts.phases[0].committed == 4, what="all maps but one are committed")
    for field in ("0.1.0", "1.1.0", "3.1.0"):
        shuffle = shuffle_hash(redis, run, field)
        data = redis.hget(shuffle, field)
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
        redis.hset(shuffle, field, {"0": flipped, "1": data[:-3], "3": b""}[field[0]])
    bench.open_gate()
    bench.assert_right(run, "slow")
    assert sorted(run.events("reopened")) == ["s0-m0000", "s0-m0001", "s0-m0003"]


def test_maps_whose_segments_vanished_together_are_all_opened_before_one_of_them_has_run_again(
    workers: Workers, bench: Bench, redis: Any
) -> None:
    """So they run side by side, and the reduce starts once more and not once for each."""
    workers.start(2)
    bench.write(6, "gate")
    config = msgspec.structs.replace(CUT, reducers=1)
    run = bench.start("slow", config, seconds=0.02, gate="gate")
    run.wait_until(lambda facts: facts.phases[0].committed == 5, what="all maps but one are committed")
    redis.delete(f"rqmr:{run.id}:s0:shuffle:0")
    bench.open_gate()
    bench.assert_right(run, "slow", config)
    told = [(event.what, event.subject) for event in run.seen]
    opened = [index for index, (what, _) in enumerate(told) if what == "reopened"]
    again = [
        index for index, (what, of) in enumerate(told) if what == "committed" and "-m" in of and of.endswith("-a2")
    ]
    assert len(opened) == 5
    assert max(opened) < min(again)


def test_a_whole_shuffle_hash_may_vanish_while_reduces_run(workers: Workers, bench: Bench, redis: Any) -> None:
    workers.start(2)
    bench.write(5, lines=4)
    run = bench.start("slow", reduce_seconds=0.01)
    run.wait_until(lambda facts: facts.phase == 1 and facts.running, what="reduces run")
    redis.delete(f"rqmr:{run.id}:s0:shuffle:0", f"rqmr:{run.id}:s0:shuffle:1")
    bench.assert_right(run, "slow")


def test_a_ticket_that_rq_lost_is_missed_and_issued_again(workers: Workers, bench: Bench, redis: Any) -> None:
    """It goes before a worker has seen it, and is looked for when it has waited for five seconds."""
    bench.write(1)
    run = bench.start("slow")
    wait_until(lambda: redis.llen("rq:queue:rqmr"), timeout=10, what="a ticket is queued for the only map")
    redis.delete("rq:queue:rqmr")
    workers.start(1)
    tickets = f"rqmr:{run.id}:tickets"
    assert redis.zrange(tickets, 0, -1) == [b"1"], "it is taken for queued"
    redis.zadd(tickets, {"1": 1})  # as if it had waited
    bench.assert_right(run, "slow")


def test_a_segment_that_the_second_step_misses_is_made_again_from_the_first(
    workers: Workers, bench: Bench, redis: Any
) -> None:
    """It is a reduce task that runs again, and it needs a map's segment that is gone as well."""
    workers.start(2)
    bench.write(4, "gate")
    config = msgspec.structs.replace(CUT, reducers=3)
    run = bench.start("two_steps", config, gate="gate")
    run.wait_until(lambda facts: facts.phases[1].committed == 2, what="all reduces of the first step but one are done")
    waiting = next(each.id.task.index for each in run.facts.running) if run.facts else -1
    done = next(number for number in range(3) if number != waiting)
    shuffles = [f"rqmr:{run.id}:s1:shuffle:{number}" for number in range(3)]
    assert sum(redis.hdel(shuffle, f"{done}.1.0") for shuffle in shuffles)
    assert redis.hdel(f"rqmr:{run.id}:s0:shuffle:{done}", "1.1.0")
    bench.open_gate()
    bench.assert_right(run, "two_steps", config)
    assert run.events("reopened") == [f"s0-r{done:04}", "s0-m0001"]


def test_a_stage_that_is_removed_ends_the_run(workers: Workers, bench: Bench) -> None:
    """Attempts never make it again, so none can succeed; the user must hear of it."""
    workers.start(2)
    bench.write(4, "gate")
    run = bench.start("slow", gate="gate")
    run.wait_until(lambda facts: facts.phases[0].committed == 3, what="all maps but one are committed")
    shutil.rmtree(bench.directory / "out0")
    bench.open_gate()
    with pytest.raises(rqmr.RunFailed, match=r"stage|directory"):
        run.result(8)


def test_a_flushed_server_is_told_as_what_it_is(workers: Workers, bench: Bench, redis: Any) -> None:
    workers.start(1)
    bench.write(6)
    run = bench.start("slow", seconds=0.1)
    run.wait_until(lambda facts: facts.running, what="a map runs")
    redis.flushdb()
    with pytest.raises(rqmr.RunFailed, match=f"{run.id} is gone from Redis: was it flushed"):
        run.result()
    assert not (bench.directory / "out0").exists()


# --- stragglers ---------------------------------------------------------------------------------------------------


def test_a_straggler_gets_a_backup_on_another_worker_and_the_run_does_not_wait(workers: Workers, bench: Bench) -> None:
    workers.start(2)
    bench.write(6, "late")
    began = time.monotonic()
    run = bench.start("slow", seconds=0.02, straggle="late", straggle_seconds=30)
    straggler = bench.pid_of("straggled")
    result = bench.assert_right(run, "slow")
    assert result.summary.seconds < 12
    assert time.monotonic() - began < 15
    assert run.events("backed up") == [f"{task_with('late')}-a1"]
    assert f"{task_with('late')}-a2" in run.events("committed")
    workers_of = {event.subject: event.note for event in run.seen if event.what == "claimed"}
    assert workers_of[f"{task_with('late')}-a1"] != workers_of[f"{task_with('late')}-a2"]
    wait_until(lambda: not is_alive(straggler), timeout=9, what="the loser, told to stop, ends itself in five seconds")
    assert [worker.poll() for worker in workers.processes] == [None, None]


# --- chance -------------------------------------------------------------------------------------------------------


def test_a_run_survives_a_work_horse_or_worker_killed_every_moment(workers: Workers, bench: Bench) -> None:
    seed = int(os.environ.get("RQMR_TEST_SEED", time.time_ns() % 10**6))
    print(f"RQMR_TEST_SEED={seed}")
    chance = random.Random(seed)
    workers.start(3)
    bench.write(12, lines=6)
    run = bench.start("slow", seconds=0.05, reduce_seconds=0.001)
    killed = 0
    while not run.is_over and killed < 5:
        time.sleep(chance.uniform(0.05, 0.4))
        worker = chance.choice([each for each in workers.processes if each.poll() is None])
        horses = workers.horses_of(worker)
        what = chance.choice(["horse", "horse", "worker", "both"])
        if what != "horse":
            worker.kill()
            worker.wait()
            workers.begin()
        if what != "worker":
            signal_all(horses, signal.SIGKILL)
        killed += 1
    bench.assert_right(run, "slow")
    print(f"{killed} killed, lost {run.events('lost')}")
