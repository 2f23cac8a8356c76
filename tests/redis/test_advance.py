"""advance: the barrier between two phases is counted from the winners, and passed once, whoever asks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from rqmr.connection import connect
from rqmr.scheduler import is_complete


def test_a_phase_is_not_passed_while_a_task_is_missing(run):
    """Two of three winners are not enough, and asking changes nothing."""
    run.commit(run.claim())
    run.commit(run.claim())
    before = run.dump()

    assert run.state.advance(0) == "NOT YET"

    assert run.dump() == before


def test_behind_the_last_map_the_reduce_tasks_are_pending(run):
    """The next phase begins: its tasks are in line, in their order."""
    for _ in range(3):
        run.commit(run.claim())

    assert run.state.advance(0) == "ADVANCED"

    facts = run.state.facts()
    assert facts.phase == 1
    assert facts.phases[1].started_ms >= facts.phases[0].started_ms > 0
    assert facts.phases[1].pending == 2
    assert run.line() == ["s0-r0000", "s0-r0001"]
    assert run.events()[-1] == ("began", "s0-r")


def test_a_phase_is_passed_once(run):
    """Asking again finds it passed, and takes no reduce task back that is claimed already."""
    run.commit_phase()
    run.claim()
    before = run.dump()

    assert run.state.advance(0) == "ALREADY"

    assert run.dump() == before


def test_of_eight_that_ask_at_once_one_passes(run, redis_url):
    """The horse that committed last and every tick may ask together."""
    for _ in range(3):
        run.commit(run.claim())

    def advance(_: int) -> str:
        client = connect(redis_url)
        word = run.through(client).state.advance(0)
        client.close()
        return word

    with ThreadPoolExecutor(8) as pool:
        words = list(pool.map(advance, range(8)))

    assert sorted(words) == ["ADVANCED"] + ["ALREADY"] * 7
    assert run.line() == ["s0-r0000", "s0-r0001"]


def test_behind_the_last_phase_the_run_is_complete(run):
    """There is no next phase, so nothing is pending; the driver has to collect."""
    run.commit_phase()
    run.commit_phase()

    facts = run.state.facts()
    assert facts.phase == 2
    assert is_complete(facts)
    assert run.line() == []
    assert run.state.advance(1) == "ALREADY"


def test_a_run_without_reducer_is_complete_behind_its_maps(make_run):
    """A map-only job has one phase."""
    run = make_run(maps=2, reducers=0)
    run.commit_phase()

    assert is_complete(run.state.facts())


def test_a_phase_that_has_not_begun_cannot_be_passed(run):
    """Only the current one can."""
    before = run.dump()

    assert run.state.advance(1) == "ALREADY"

    assert run.dump() == before


def test_more_than_ten_thousand_reduce_tasks_keep_their_order(make_run):
    """Ids have four digits at least, and as many as they need."""
    run = make_run(maps=1, reducers=10_002)
    run.commit_phase()

    line = run.line()

    assert line == [str(task) for task in run.spec.tasks(1)]
    assert line[-1] == "s0-r10001"


def test_an_ended_run_does_not_advance(run, ending):
    """Nobody waits for the next phase any more, and no key comes back."""
    for _ in range(3):
        run.commit(run.claim())
    run.end(ending)
    before = run.dump()

    assert run.state.advance(0) == "ALREADY"

    assert run.dump() == before


def test_a_server_that_forgot_its_scripts_is_told_them_again(run):
    """A restart or SCRIPT FLUSH costs one round trip."""
    run.redis.script_flush()

    assert run.state.advance(0) == "NOT YET"
