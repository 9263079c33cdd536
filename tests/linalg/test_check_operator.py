"""The check of an operator's contract: each broken promise is named, each kept one passes."""

import pytest
import torch

from landscape.errors import NumericalError
from landscape.linalg import DenseOperator, SymmetricOperator, check_operator, seeded
from tests.helpers.matrices import with_spectrum


class Plain(SymmetricOperator):
    """Whatever a function makes of a block, without any check."""

    def __init__(self, function, *, n=40, dtype=torch.float64):
        self.function, self.n, self.dtype, self.device = function, n, dtype, torch.device("cpu")

    def matmat(self, V):
        return self.function(V)


def matrix(*, seed=0):
    M = torch.randn(40, 40, generator=seeded(seed), dtype=torch.float64)
    return M + M.T


M = matrix()
ROTATION = torch.diag(torch.ones(39, dtype=torch.float64), 1)
NOISE = seeded(9)


def first_row_forgotten(V):
    return torch.cat([torch.zeros_like(V[:1]), (M @ V)[1:]])


def in_place(V):
    return V.mul_(2)


BROKEN = {
    "not symmetric": lambda V: (M + ROTATION) @ V,
    "not symmetric: ": first_row_forgotten,
    "not linear": lambda V: M @ V.clamp(max=0.5),
    "not linear: ": lambda V: M @ V + 1,
    "not one fixed matrix": lambda V: (
        M @ V + 1e-6 * torch.randn(V.shape, generator=NOISE, dtype=V.dtype)
    ),
    "not one fixed matrix: ": lambda V: M @ V * (1 + 1e-3 * V.shape[1]),
    "is not finite": lambda V: (M @ V) / 0,
    r"\(3, 40\)": lambda V: (M @ V).T,
    "float32": lambda V: (M @ V).float(),
    "a tuple": lambda V: (M @ V, None),
    "changes the vectors": in_place,
}


@pytest.mark.parametrize("message", BROKEN, ids=lambda message: message.strip(" :"))
def test_a_broken_operator_is_named_with_what_is_wrong(message):
    function = BROKEN[message]
    with pytest.raises(NumericalError, match=message) as caught:
        check_operator(Plain(function))
    assert str(caught.value).startswith("Plain of size 40: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(20))
def test_an_antisymmetric_part_of_a_millionth_is_found_with_every_seed_and_measured(seed):
    skew = torch.randn(40, 40, generator=seeded(1), dtype=torch.float64)
    skew = 1e-6 * (skew - skew.T)
    operator = Plain(lambda V: (M + skew) @ V)
    with pytest.raises(NumericalError, match="not symmetric"):
        check_operator(operator, seed=seed)
    # A form of the antisymmetric part is about as large as 2 |skew|, here within the spread of
    # three normal deviates.
    expected = float(2 * skew.norm() / M.norm())
    assert 0.05 * expected < check_operator(operator, seed=seed, tol=1.0).asymmetry < 6 * expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_symmetric_operators_pass_for_every_seed(dtype):
    operators = [
        DenseOperator(M.to(dtype)),
        Plain(lambda V: 0 * V, dtype=dtype),
        with_spectrum([1e6, 1.0, 1e-6], dtype=dtype),
    ]
    for operator in operators:
        worst = max(max(vars(check_operator(operator, seed=seed)).values()) for seed in range(50))
        assert worst <= 1000 * torch.finfo(dtype).eps


def test_a_support_that_leaves_something_out_is_named():
    rows = torch.arange(40) != 7
    honest, short = DenseOperator(M * rows[:, None] * rows), DenseOperator(M)
    honest.support = short.support = rows.nonzero()[:, 0]
    assert check_operator(honest).outside == 0
    with pytest.raises(NumericalError, match="support is wrong"):
        check_operator(short)
    honest.support = honest.support.flip(0)
    with pytest.raises(NumericalError, match="not ascending"):
        check_operator(honest)


def test_an_operator_that_states_an_error_is_held_to_that_and_others_to_rounding():
    generator = seeded(3)
    operator = Plain(
        lambda V: (
            M @ V + 1e-5 * torch.randn(V.shape, generator=generator, dtype=V.dtype) * V.norm() / 40
        )
    )
    with pytest.raises(NumericalError, match="one fixed matrix"):
        check_operator(operator)
    operator.error_estimate = 1e-5
    assert check_operator(operator).unrepeatability > 1e-9
    operator.error_estimate = 1e-9
    with pytest.raises(NumericalError, match="one fixed matrix"):
        check_operator(operator)


def test_arguments_out_of_range_are_refused():
    cases = (
        ({"num_probes": 1}, "at least 2"),
        ({"tol": 0.0}, "finite and > 0"),
        ({"tol": float("nan")}, "finite"),
    )
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            check_operator(DenseOperator(M), **options)
