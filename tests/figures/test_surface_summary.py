"""What a slice is said to show: when two curvatures agree, and when nobody knows."""

import math

import numpy as np
import pytest

from landscape.figures.surface_summary import barrier_words, check
from landscape.surface import Axis, CurvatureFit, LocalModel, LossSlice

T = np.linspace(-1.0, 1.0, 5)


def said(eigenvalue, bound, fit, error, *, converged=True):
    axis = Axis(
        name="eigenvector 1",
        unit="",
        coordinates=T,
        norm=1.0,
        eigenvalue=eigenvalue,
        bound=bound,
        converged=converged,
        fit=CurvatureFit(value=fit, error=error, step=0.1),
    )
    local = LocalModel(loss=1.0, slopes=np.zeros(1), hessian=np.array([[eigenvalue]]))
    return check(LossSlice(axis=axis, losses=np.ones(5), computed=np.full(5, True), local=local), 0)


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ((100, 0.1, 100.9, 0.01), "they agree"),
        ((-100, 0.1, -100.9, 0.01), "they agree"),
        # 1 % and the two errors, which are below 1 % together.
        ((100, 0.4, 101.7, 0.4), "they agree"),
        ((100, 0.4, 101.9, 0.4), "THEY DISAGREE"),
        ((100, 0.1, -100, 0.1), "THEY DISAGREE"),
        ((100, 0.1, 91, 0.1), "THEY DISAGREE"),
        # Errors of 9 % do not turn a difference of 9 % into agreement, nor into its opposite.
        ((100, 0.1, 91, 9.0), "consistent within errors of 9.1 %, which are too large to say more"),
        (
            (100, 9.0, 100, 0.1),
            "consistent within errors of 9.1 %, which are too large to say more",
        ),
        ((100, 0.1, -500, 700), "too uncertain to tell"),
        ((100, math.inf, 100, 0.1), "too uncertain to tell"),
        ((100, 0.1, math.nan, math.inf), "too uncertain to tell"),
        ((0.0, 0.0, 0.0, 1e-9), "too uncertain to tell"),
    ],
)
def test_curvatures_agree_only_where_difference_and_errors_are_at_most_one_percent(
    numbers, verdict
):
    assert said(*numbers).endswith(f": {verdict}.")


def test_an_eigenvalue_that_did_not_converge_is_refuted_or_left_open_and_never_confirmed():
    unconfirmed = ": not compared, since the eigenvalue did not converge."
    assert said(100, math.inf, -500, 1, converged=False).endswith(unconfirmed)
    assert said(100, 0.1, 100, 0.01, converged=False).endswith(unconfirmed)
    assert said(100, 5, -500, 1, converged=False).endswith(": THEY DISAGREE.")


@pytest.mark.parametrize("end", [math.nan, math.inf])
def test_a_barrier_of_which_an_end_is_not_known_is_unknown_and_not_absent(end):
    axis = Axis(name="line", unit="", coordinates=np.linspace(0, 1, 5), norm=1.0)
    words = barrier_words(
        LossSlice(axis=axis, losses=np.array([1, 9, 9, 9, end]), computed=np.full(5, True))
    )
    assert words.startswith("barrier unknown") and "no barrier" not in words
