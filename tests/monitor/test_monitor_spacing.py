"""When a monitor measures, in a simulated clock: every number of seconds here is exact."""

import pytest

from landscape.monitor.spacing import Spacing


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def run(num_steps, *, step_seconds=1.0, cost=lambda number: 4.0, clock=None, **options):
    """A training in which a step and a measurement take so many seconds; the steps after which it
    measured, and the shares.
    """
    clock = Clock() if clock is None else clock
    spacing = Spacing(clock=clock, **options)
    measured, shares = [], []
    for step in range(1, num_steps + 1):
        clock.now += step_seconds if not callable(step_seconds) else step_seconds(step)
        if spacing.is_due(step):
            with spacing.measuring(step):
                clock.now += cost(len(measured))
            measured.append(step)
        shares.append(spacing.spent / max(spacing.trained, 1e-9))
    return measured, shares, spacing


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.3])
def test_measuring_takes_the_budget_and_never_more_once_the_first_is_paid(budget):
    measured, shares, spacing = run(5000, budget=budget)
    paid = measured[1]
    assert max(shares[paid:]) <= budget + 1e-12
    # And all of it: what is left is less than a measurement.
    assert spacing.spent > budget * spacing.trained - 4.0 - 1e-9
    assert len(measured) == int(budget * 4999 / 4.0)


def test_one_slow_measurement_is_waited_for_and_does_not_slow_down_the_rest():
    measured, shares, spacing = run(
        8000, budget=0.05, cost=lambda number: 60.0 if number == 10 else 4.0
    )
    gaps = [after - before for before, after in zip(measured, measured[1:])]
    slow = measured[10]
    # 4 s of 5 % are 80 steps; the slow one asks for 60 s / 5 % = 1200 steps, of which its own place
    # had 80.
    assert gaps[10] == pytest.approx(1200, abs=2)
    assert set(gaps[11:]) == {80}
    after = measured[11]
    assert (
        max(shares[measured[1] : slow - 1]) <= 0.05 + 1e-12 and max(shares[after:]) <= 0.05 + 1e-12
    )


def test_costs_that_vary_pass_the_budget_by_less_than_a_measurement():
    costs = [3.0, 5.0, 4.0, 6.0, 2.0]
    measured, shares, spacing = run(20_000, budget=0.05, cost=lambda number: costs[number % 5])
    # After the first step the clock of the training stands at 0.
    overrun = [(share - 0.05) * seconds for seconds, share in enumerate(shares)]
    assert max(overrun[measured[1] :]) < max(costs)
    # Once five are known, a measurement passes its prediction by the slowest less the second
    # slowest at most.
    assert max(overrun[measured[6] :]) <= 1.0 + 1e-9
    assert len(measured) > 200


def test_steps_apart_as_asked_and_without_a_budget_every_time():
    assert run(10, budget=None, every=3)[0] == [1, 4, 7, 10]
    assert run(5, budget=None)[0] == [1, 2, 3, 4, 5]
    # With a budget for one in 80 steps, 300 steps apart is the stronger wish.
    assert run(1000, budget=0.05, every=300)[0] == [1, 301, 601, 901]


def test_pauses_of_the_loop_count_as_training_time():
    measured, _, _ = run(400, budget=0.05, step_seconds=lambda step: 1000.0 if step == 50 else 1.0)
    assert measured[1] == 50


def test_a_resumed_training_pays_what_its_first_part_spent():
    clock = Clock()
    _, _, first = run(1000, budget=0.05, clock=clock)
    measured, shares, _ = run(
        200,
        budget=0.05,
        clock=clock,
        spent=first.spent + 20.0,
        trained=first.trained,
        cost=lambda number: 4.0,
    )
    # 20 s too much are 400 steps of 5 %.
    assert measured == []


def test_time_before_the_first_step_is_none_of_training():
    clock = Clock()
    spacing = Spacing(clock=clock)
    clock.now += 1e6
    assert spacing.trained == 0 and spacing.is_due(1)
    clock.now += 5
    assert spacing.trained == 5


def test_a_measurement_that_fails_is_paid_for_too():
    clock = Clock()
    spacing = Spacing(clock=clock)
    assert spacing.is_due(1)
    with pytest.raises(ZeroDivisionError), spacing.measuring(1):
        clock.now += 3
        raise ZeroDivisionError
    assert spacing.spent == 3 and spacing.last_seconds == 3 and not spacing.is_due(2)
