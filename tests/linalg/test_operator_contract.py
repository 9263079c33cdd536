"""One contract for every operator: a fixed symmetric matrix, multiplied linearly, block by block,
and honest about zeros.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch.nn import functional as F

from landscape.curvature import (
    EmpiricalFisherOperator,
    FiniteDifferenceOperator,
    GaussNewtonOperator,
    HessianOfBatches,
    HessianOperator,
    Objective,
    select_parameters,
)
from landscape.linalg import (
    DenseOperator,
    DiagonalOperator,
    SymmetricOperator,
    average,
    check_operator,
    eigsh,
    restricted,
    seeded,
    shifted,
)
from landscape.linalg.support import SupportedPart
from tests.linalg.test_support import TOKENS, Bag

OTHER_TOKENS = torch.tensor([[2, 3, 8], [7, 7, 0]])


def logits(model, tokens):
    return model(tokens)


def cross_entropy(z, tokens):
    return F.cross_entropy(z, torch.tensor([2, 0]))


def problem(*, weight_decay=0.0, dtype=torch.float64):
    """58 parameters, of which a batch reaches 36: a table of embeddings, a hidden layer, and an
    unused one.
    """
    model = Bag(tied=False).to(dtype)
    objective = Objective.from_outputs(model, logits, cross_entropy, weight_decay=weight_decay)
    # Each row of the logits comes from one row of tokens.
    return replace(objective, rowwise=True), select_parameters(model)


def fisher(**options):
    _, params = problem(**options)
    model = Bag(tied=False).to(next(iter(params.values())).dtype)

    def losses(model, tokens):
        return F.cross_entropy(logits(model, tokens), torch.tensor([2, 0]), reduction="none")

    return EmpiricalFisherOperator(model, losses, params, TOKENS)


def of(kind, tokens=TOKENS, *, weight_decay=0.0, dtype=torch.float64, **options):
    return kind(*problem(weight_decay=weight_decay, dtype=dtype), tokens, **options)


def dense(dtype=torch.float64):
    M = torch.randn(40, 40, generator=seeded(0), dtype=torch.float64)
    return DenseOperator((M + M.T).to(dtype))


def both(kind, **options):
    return [of(kind, TOKENS, **options), of(kind, OTHER_TOKENS, **options)]


# Indices of the hidden layer, of some embeddings, and of an unused parameter, in no order.
ROWS = torch.tensor([56, 40, 3, 4, 12, 39, 50, 13, 0])

MAKERS = {
    "dense": dense,
    "dense float32": lambda: dense(torch.float32),
    "hessian": lambda: of(HessianOperator),
    "hessian float32": lambda: of(HessianOperator, dtype=torch.float32),
    "hessian weight decay": lambda: of(HessianOperator, weight_decay=0.3),
    "hessian rebuilt": lambda: of(HessianOperator, hvp="rebuilt"),
    "hessian jvp": lambda: of(HessianOperator, hvp="jvp"),
    "hessian rows": lambda: of(HessianOperator, hvp="rows", rows=1),
    "hessian blocks": lambda: of(HessianOperator, columns=3),
    "gauss-newton": lambda: of(GaussNewtonOperator),
    "gauss-newton float32": lambda: of(GaussNewtonOperator, dtype=torch.float32),
    "gauss-newton weight decay": lambda: of(GaussNewtonOperator, weight_decay=0.3),
    "gauss-newton blocks": lambda: of(GaussNewtonOperator, columns=3),
    "empirical Fisher": fisher,
    "empirical Fisher float32": lambda: fisher(dtype=torch.float32),
    "diagonal": lambda: DiagonalOperator(torch.linspace(-1, 2, 40, dtype=torch.float64)),
    "finite differences": lambda: of(FiniteDifferenceOperator),
    "finite differences float32": lambda: of(FiniteDifferenceOperator, dtype=torch.float32),
    "sum": lambda: of(HessianOperator) + of(GaussNewtonOperator, OTHER_TOKENS),
    "difference and multiple": lambda: 2 * of(HessianOperator) - 0.5 * of(GaussNewtonOperator),
    "average": lambda: average(both(HessianOperator), weights=[1, 3]),
    "average of differences": lambda: average(both(FiniteDifferenceOperator)),
    "batches": lambda: HessianOfBatches(*problem(), [TOKENS, OTHER_TOKENS], weights=[1, 3]),
    "batches with graphs": lambda: HessianOfBatches(
        *problem(weight_decay=0.3), [TOKENS, OTHER_TOKENS], keep_graphs=True
    ),
    "batches in chunks": lambda: HessianOfBatches(
        *problem(), [TOKENS, OTHER_TOKENS], weights=[1, 3], rows=1
    ),
    "shift": lambda: shifted(of(HessianOperator), -0.7),
    "restriction": lambda: restricted(of(HessianOperator), ROWS),
    "restriction of a sum": lambda: restricted(
        shifted(of(HessianOperator) + of(GaussNewtonOperator), 0.1), ROWS
    ),
    "part in the support": lambda: SupportedPart(of(HessianOperator)),
}


@dataclass(frozen=True)
class Subject:
    """An operator, its matrix column by column, and how far two ways to the same product may
    differ.
    """

    operator: SymmetricOperator
    matrix: torch.Tensor
    tol: float

    def vectors(self, k, *, seed=1):
        return torch.randn(self.operator.n, k, generator=seeded(seed), dtype=torch.float64).to(
            self.operator.dtype
        )

    def assert_close(self, one, other):
        size = self.matrix.double().norm() * max(1.0, self.operator.n**0.5)
        assert (one.double() - other.double()).norm() <= self.tol * size


@pytest.fixture(params=MAKERS, scope="module")
def subject(request):
    operator = MAKERS[request.param]()
    columns = [operator @ e for e in torch.eye(operator.n, dtype=operator.dtype)]
    matrix = torch.stack(columns, dim=1)
    # Some hundred roundings; where products are differences, ten times the error that they state.
    tol = 100 * torch.finfo(operator.dtype).eps + 10 * operator.error_estimate / float(
        matrix.double().norm()
    )
    return Subject(operator, matrix, tol)


def test_the_matrix_is_symmetric_and_not_zero(subject):
    assert subject.matrix.any()
    subject.assert_close(subject.matrix, subject.matrix.T)


def test_products_are_linear(subject):
    V, c = subject.vectors(3), torch.tensor([2.0, -0.5, 1.25], dtype=subject.operator.dtype)
    subject.assert_close(subject.operator @ (V @ c), (subject.operator @ V) @ c)
    subject.assert_close(subject.operator @ V, subject.matrix @ V)
    zero = torch.zeros(subject.operator.n, 2, dtype=subject.operator.dtype)
    assert not (subject.operator @ zero).any()


def test_the_same_vectors_give_the_same_products_to_the_last_bit_and_are_left_alone(subject):
    V = subject.vectors(2)
    before = V.clone()
    first = subject.operator @ V
    assert torch.equal(subject.operator @ V, first) and torch.equal(V, before)


def test_under_inference_mode_products_and_eigenvalues_are_the_same(subject):
    A, V = subject.operator, subject.vectors(2)
    with torch.inference_mode():
        product, values = A @ V.clone(), eigsh(A, 2, max_matvecs=8).values
    assert torch.equal(product, A @ V)
    assert torch.equal(values, eigsh(A, 2, max_matvecs=8).values)


@pytest.mark.parametrize("name", MAKERS)
def test_an_operator_can_be_built_under_inference_mode(name):
    with torch.inference_mode():
        A = MAKERS[name]()
    v = torch.ones(A.n, dtype=A.dtype)
    assert torch.equal(A @ v, MAKERS[name]() @ v)


def test_products_carry_no_graph_and_share_no_memory(subject):
    V = subject.vectors(2)
    first = subject.operator @ V
    assert not first.requires_grad
    kept = first.clone()
    subject.operator @ (2 * V)
    assert torch.equal(first, kept)


@pytest.mark.parametrize("k", [0, 1, 2, 7])
def test_a_block_is_its_columns(subject, k):
    V = subject.vectors(k)
    block = subject.operator @ V
    assert (
        block.shape == V.shape
        and block.dtype == subject.operator.dtype
        and block.device == subject.operator.device
    )
    for i in range(k):
        column = subject.operator @ V[:, i]
        assert column.shape == (subject.operator.n,)
        subject.assert_close(block[:, i], column)


def test_vectors_of_any_layout_are_taken(subject):
    V = subject.vectors(2)
    subject.assert_close(subject.operator @ V.T.contiguous().T, subject.operator @ V)
    subject.assert_close(subject.operator @ V.flip(0).flip(0), subject.operator @ V)


def test_wrong_shapes_types_and_devices_are_refused(subject):
    A = subject.operator
    other = torch.float32 if A.dtype == torch.float64 else torch.float64
    wrong = [
        torch.ones(A.n + 1, dtype=A.dtype),
        torch.ones(A.n - 1, 2, dtype=A.dtype),
        torch.ones(A.n, 2, 2, dtype=A.dtype),
        torch.ones((), dtype=A.dtype),
        torch.ones(A.n, dtype=other),
        torch.ones(A.n, dtype=torch.int64),
        torch.ones(A.n, dtype=A.dtype, device="meta"),
        np.ones(A.n),
        [1.0] * A.n,
    ]
    for V in wrong:
        with pytest.raises(ValueError, match=type(A).__name__):
            A @ V


def test_outside_of_the_support_everything_is_exactly_zero(subject):
    A = subject.operator
    if A.support is None:
        return
    assert (
        (A.support[1:] > A.support[:-1]).all()
        and 0 <= A.support[0]
        and A.support[-1] < A.n
        and len(A.support) < A.n
    )
    outside = torch.ones(A.n, dtype=torch.bool)
    outside[A.support] = False
    assert not subject.matrix[outside].any() and not subject.matrix[:, outside].any()


def test_operators_of_part_of_a_table_state_their_support():
    stating = {name for name, make in MAKERS.items() if make().support is not None}
    assert stating == {
        *("hessian rebuilt", "hessian jvp", "hessian rows"),
        *("empirical Fisher", "empirical Fisher float32"),
        *(
            "hessian",
            "hessian float32",
            "hessian blocks",
            "gauss-newton",
            "gauss-newton float32",
            "gauss-newton blocks",
        ),
        *(
            "sum",
            "difference and multiple",
            "average",
            "batches",
            "batches in chunks",
            "restriction",
        ),
    }


def test_scipy_sees_the_same_matrix(subject):
    S = subject.operator.to_scipy()
    assert isinstance(S, scipy.sparse.linalg.LinearOperator) and S.shape == subject.operator.shape
    V = subject.vectors(3)
    for product in (S @ V.numpy(), S.H @ V.numpy(), S.T @ V.numpy()):
        assert product.dtype == S.dtype
        subject.assert_close(torch.from_numpy(product), subject.operator @ V)
    assert (S @ V[:, 0].numpy()).shape == (subject.operator.n,)


def test_the_largest_eigenvalue_is_that_of_the_matrix_for_scipy_and_for_this_project(subject):
    truth = torch.linalg.eigvalsh((subject.matrix + subject.matrix.T).double() / 2)
    largest = truth[truth.abs().argmax()]
    bound = (
        max(subject.tol * float(subject.matrix.double().norm()), 1e-6 * abs(largest))
        * subject.operator.n**0.5
    )
    start = subject.vectors(1, seed=2)[:, 0].numpy()
    theirs = scipy.sparse.linalg.eigsh(
        subject.operator.to_scipy(), k=1, v0=start, return_eigenvectors=False
    )[0]
    ours = eigsh(subject.operator, 1, tol=1e-4).values[0]
    assert abs(theirs - largest) <= bound and abs(ours - largest) <= bound


def test_the_check_on_request_agrees(subject):
    check = check_operator(subject.operator)
    assert (
        max(check.asymmetry, check.nonlinearity, check.unrepeatability, check.outside) <= check.tol
    )
