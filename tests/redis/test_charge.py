"""charge: what a run has had of the workers' time."""

from __future__ import annotations


def had(run):
    """What the run was charged for so far."""
    return int(run.redis.hget(run.keys.run, "had") or 0)


def test_charges_add_up_and_go_with_the_run(run):
    assert [run.scripts.charge(700), run.scripts.charge(400)] == ["CHARGED", "CHARGED"]
    assert had(run) == 1100
    assert run.redis.pttl(run.keys.run) > 0


def test_a_run_that_has_ended_is_not_charged(run, ending):
    """Nor does it come back."""
    run.end(ending)
    before = run.dump()
    assert run.scripts.charge(700) == "ENDED"
    assert run.dump() == before


def test_a_server_that_forgot_its_scripts_is_told_them_again(run):
    run.redis.script_flush()
    assert run.scripts.charge(700) == "CHARGED"
    assert had(run) == 700


def test_the_same_time_costs_a_run_of_high_priority_a_quarter_and_one_of_low_priority_four_times_as_much(make_run):
    costs = [make_run(priority=priority).spec.cost_of(1.5) for priority in ("high", "normal", "low")]
    assert costs == [1_500, 6_000, 24_000]
