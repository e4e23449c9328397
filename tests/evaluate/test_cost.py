"""What a call costs, by the clock."""

from lrp.evaluate import cost


def test_the_quickest_of_several_calls_leaves_the_first_out(monkeypatch):
    calls, times = [], iter([0.3, 0.1, 0.2])
    monkeypatch.setattr(cost, "seconds", lambda call: (call(), next(times))[1])
    assert cost.quickest(lambda: calls.append(1)) == 0.1 and len(calls) == 4
