"""The plan of a storm: all of it comes from the seed, and it asks for nothing that rqmr doesn't promise."""

from __future__ import annotations

from chaos.plan import KINDS, LEASE, plan

from rqmr.config import Config


def test_a_seed_gives_the_same_plan_again_and_another_one_another() -> None:
    assert [plan(4, number, 6) for number in range(1, 9)] == [plan(4, number, 6) for number in range(1, 9)]
    assert plan(4, 1, 6) != plan(5, 1, 6)
    assert plan(4, 1, 6).faults != plan(4, 2, 6).faults


def test_each_workload_comes_once_before_one_comes_again() -> None:
    first = [plan(4, number, 6).workloads[0] for number in range(1, 13)]
    assert sorted(first[:6]) == sorted(first[6:]) == list(range(6))


def test_each_kind_of_fault_comes_and_nothing_comes_so_often_that_a_run_may_fail() -> None:
    plans = [plan(4, number, 6) for number in range(1, 300)]
    assert {fault.kind for each in plans for fault in each.faults} == set(KINDS)
    assert all(len(each.faults) + len(each.at_the_end) < Config().max_lost for each in plans)
    assert {each.raises for each in plans} == set(range(Config().max_failed))
    assert all(fault.seconds > LEASE for each in plans for fault in each.faults if fault.kind.endswith("stopped"))
