"""What the check of the first product takes for the same loss, batch and vector as before."""

import torch

from landscape.curvature import HessianOperator, Objective
from landscape.curvature.audits.spot_check import is_general
from landscape.curvature.guards.fingerprint import signature_of, structure_of


def touching(count, of):
    rows = torch.zeros(1, of)
    rows[0, :count] = 1
    return rows


def test_a_vector_is_general_where_it_touches_half_of_what_the_loss_depends_on():
    assert is_general(touching(50, 100), None) and not is_general(touching(49, 100), None)
    assert is_general(touching(10, 100), torch.arange(20)) and not is_general(
        touching(9, 100), torch.arange(20)
    )


def test_functions_differ_by_code_defaults_and_what_they_close_over():
    def made(value):
        return [lambda x: x * value, lambda x, p=value: x * p, lambda x, *, p=value: x * p]

    for one, same, other in zip(made(2), made(2), made(3)):
        assert signature_of(one) == signature_of(same) != signature_of(other)


def test_a_function_that_closes_over_itself_or_over_nothing_yet_has_asignature_of():
    def itself(x):
        return itself(later)

    assert hash(signature_of(itself)) == hash(signature_of(itself))
    later = 1
    assert signature_of(itself)


def test_batches_differ_by_shapes_and_types_but_for_the_number_of_rows():
    assert structure_of(torch.zeros(2, 3)) == structure_of(torch.zeros(5, 3))
    others = torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.float64), [torch.zeros(2, 3)], 3
    assert len({structure_of(batch) for batch in (torch.zeros(2, 3), *others)}) == 5


def test_an_objective_without_a_module_is_checked():
    objective = Objective(
        lambda params, batch: params["w"], lambda w, batch: (w**3).sum(), rowwise=False
    )
    H = HessianOperator(objective, {"w": torch.ones(3, dtype=torch.float64)}, None)
    H @ torch.ones(3, dtype=torch.float64)
    assert H.checked.startswith("operator checked: product within ")
