"""Which groups stand when some are faulty, and how many comparisons it takes to tell."""

import itertools

import pytest

from norton_plugin.channels.groups import ChannelGroup
from norton_plugin.reasons import Reason
from norton_plugin.surgery.report import PrunedGroup
from norton_plugin.surgery.surgeon import Plan, Surgeon

COUNT = 16
FAULTY = Reason.DIFFERS.because(error=0.5, limit=1e-4)


class Judge(Surgeon):
    """A surgeon whose comparisons find fault with some groups, or with two of them together; one takes a second."""

    def __init__(self, monkeypatch, *faulty):
        self.faulty, self.tried, self.cut = [set(roots) for roots in faulty], [], []
        monkeypatch.setattr("time.perf_counter", lambda: float(len(self.tried)))

    def _attempt(self, plans):
        roots = {plan.group.root for plan in plans}
        assert roots not in self.tried
        self.tried.append(roots)
        return FAULTY if any(fault <= roots for fault in self.faulty) else 0.0

    def _cut_(self, plans):
        self.cut += [plan.group.root for plan in plans]


def plans():
    return [
        Plan(ChannelGroup(str(i), 8, 1, (), None), (0,), PrunedGroup(str(i), (str(i),), 8, 7, 0.9))
        for i in range(COUNT)
    ]


def judged(judge, time_limit=1e9):
    records, failures, _ = judge.prune_verified_(plans(), time_limit=time_limit)
    assert {record.root for record in records} == set(judge.cut)
    assert {record.error for record in records} <= {0.0}
    return {int(r.root) for r in records}, {int(f.name): f.cause for f in failures}


@pytest.mark.parametrize("number", [0, 1, 2])
def test_all_groups_stand_but_those_at_fault(monkeypatch, number):
    for chosen in itertools.combinations(range(COUNT), number):
        judge = Judge(monkeypatch, *[{str(i)} for i in chosen])
        stand, failures = judged(judge)
        assert stand == set(range(COUNT)) - set(chosen)
        assert failures == dict.fromkeys(chosen, FAULTY)
        # One comparison where nothing is wrong; for each fault two per halving at most, and none that is foregone.
        assert len(judge.tried) <= 1 + number * 2 * 4


def test_one_fault_takes_a_comparison_per_halving(monkeypatch):
    judge = Judge(monkeypatch, {str(COUNT - 1)})
    assert judged(judge) == (set(range(COUNT - 1)), {COUNT - 1: FAULTY})
    assert [len(roots) for roots in judge.tried] == [16, 8, 12, 14, 15]


def test_of_two_groups_that_clash_one_stands(monkeypatch):
    stand, failures = judged(Judge(monkeypatch, {"3", "12"}))
    assert len(stand) == COUNT - 1 and len(failures) == 1 and set(failures) < {3, 12}


def test_when_time_runs_out_most_is_done(monkeypatch):
    stand, failures = judged(Judge(monkeypatch, {"0"}), time_limit=2.5)
    assert stand == set(range(8, 16))
    assert failures == dict.fromkeys(range(8), Reason.PROOF_TIME.because())
