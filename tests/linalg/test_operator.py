"""What is taken for an operator, and what is refused."""

from functools import partial

import numpy as np
import pytest
import torch

from landscape.linalg import (
    DenseOperator,
    check_operator,
    dense_spectrum,
    density,
    eigsh,
    power_iteration,
    trace,
)

FUNCTIONS = [
    partial(eigsh, k=1),
    partial(power_iteration, k=1),
    density,
    trace,
    dense_spectrum,
    check_operator,
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("matrix", [torch.eye(3), np.eye(3)], ids=["tensor", "array"])
def test_a_matrix_that_is_no_operator_is_refused_with_the_way_to_make_it_one(function, matrix):
    with pytest.raises(
        ValueError,
        match=rf"needs a SymmetricOperator, got a {type(matrix).__name__}.*DenseOperator\(matrix\)",
    ):
        function(matrix)


@pytest.mark.parametrize(
    "matrix, message",
    [
        (torch.zeros(0, 0), r"at least one row, got shape \(0, 0\)"),
        (torch.zeros(2, 3), r"square matrix.*got shape \(2, 3\)"),
        (torch.eye(3, dtype=torch.int64), "real floating-point numbers, got torch.int64"),
        (torch.eye(3, dtype=torch.complex64), "real floating-point numbers, got torch.complex64"),
        (np.eye(3), "real floating-point numbers, got ndarray"),
    ],
)
def test_a_matrix_without_a_spectrum_of_real_numbers_is_refused(matrix, message):
    with pytest.raises(ValueError, match=message):
        DenseOperator(matrix)
