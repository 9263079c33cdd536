"""P^-1/2 H P^-1/2 of Muon against dense matrices, with P from Newton-Schulz written out and from
the steps that torch's Muon really makes.
"""

import math
import re

import pytest
import torch
from torch import nn

import landscape
from landscape.curvature import Objective, select_parameters
from landscape.linalg import BlockScaledOperator, DenseOperator, MatrixFactor, eigsh, seeded
from tests.helpers.oracles import dense_hessian

DOUBLE = torch.float64
RATE = 1e-2
Muon = torch.optim.Muon
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Net(nn.Module):
    """A wide, a tall and a square matrix, and vectors beside them."""

    def __init__(self):
        super().__init__()
        generator = seeded(1)
        self.wide = nn.Linear(6, 3, dtype=DOUBLE)
        self.tall = nn.Linear(3, 5, bias=False, dtype=DOUBLE)
        self.square = nn.Linear(5, 5, bias=False, dtype=DOUBLE)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=DOUBLE))

    def forward(self, x):
        return self.square(torch.tanh(self.tall(torch.tanh(self.wide(x)))))


def batch():
    generator = seeded(2)
    x = torch.randn(12, 6, generator=generator, dtype=DOUBLE)
    return x, torch.randn(12, 5, generator=generator, dtype=DOUBLE)


def loss(model, batch):
    # Classes whose gradients add up to zero would leave the last matrix a direction of rounding.
    return (model(batch[0]) - batch[1]).square().mean()


def matrices_of(model):
    return [tensor for tensor in model.parameters() if tensor.ndim == 2]


def pair_of(model, **options):
    """Muon for the matrices, AdamW at a third of its rate for the rest."""
    vectors = [tensor for tensor in model.parameters() if tensor.ndim != 2]
    muon = Muon(matrices_of(model), lr=RATE, weight_decay=0.0, **options)
    return [muon, torch.optim.AdamW(vectors, lr=RATE / 3)]


def train(model, optimizers, steps=5):
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss(model, batch()).backward()
        for optimizer in optimizers:
            optimizer.step()


def newton_schulz(M, steps=5):
    """The iteration of the source as it is written there, in float64."""
    a, b, c = COEFFICIENTS
    X = M / M.norm()
    for _ in range(steps):
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X


def adjustment(kind, rows, columns):
    return {
        "original": max(1, rows / columns) ** 0.5,
        "match_rms_adamw": 0.2 * max(rows, columns) ** 0.5,
        "spectral_unclamped": (rows / columns) ** 0.5,
    }[kind]


def inverse_by_hand(momentum, kind):
    """P^-1 on all entries of a matrix of full rank: it takes the momentum to the step."""
    rows, columns = momentum.shape
    if rows > columns:
        right = torch.linalg.pinv(momentum) @ newton_schulz(momentum.T).T
        inverse = torch.kron(torch.eye(rows, dtype=DOUBLE), right)
    else:
        left = newton_schulz(momentum) @ torch.linalg.pinv(momentum)
        inverse = torch.kron(left, torch.eye(columns, dtype=DOUBLE))
    return adjustment(kind, rows, columns) * (inverse + inverse.T) / 2


def root_by_hand(model, optimizers, kind):
    """P^-1/2 of all parameters, with the rates relative to Muon's, the largest."""
    muon, adam = optimizers
    blocks = []
    for tensor in model.parameters():
        if tensor.ndim == 2:
            inverse = inverse_by_hand(muon.state[tensor]["momentum_buffer"], kind)
        else:
            state = adam.state[tensor]
            t, (beta1, beta2) = int(state["step"]), adam.param_groups[0]["betas"]
            root = (state["exp_avg_sq"] / (1 - beta2**t)).sqrt() + adam.param_groups[0]["eps"]
            inverse = torch.diag(1 / ((1 - beta1**t) * root)) / 3
        values, vectors = torch.linalg.eigh(inverse)
        assert values.min() > 0
        blocks.append((vectors * values.sqrt()) @ vectors.T)
    return torch.block_diag(*blocks)


def dense(model):
    objective = Objective.from_closure(model, loss)
    return dense_hessian(objective, select_parameters(model), batch())


def matrix_of(A):
    return A @ torch.eye(A.n, dtype=A.dtype)


def relative(value, truth):
    return float((value - truth).norm() / truth.norm())


def refused(call, *words):
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert re.search(word, message), message


KINDS = ["original", "match_rms_adamw", "spectral_unclamped"]


# --- products and eigenvalues ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_products_and_eigenvalues_are_those_of_the_dense_preconditioned_hessian(kind):
    model = Net()
    optimizers = pair_of(model, adjust_lr_fn=kind)
    train(model, optimizers)
    A = landscape.preconditioned(landscape.hessian(model, loss, batch()), optimizers)
    root, H = root_by_hand(model, optimizers, kind), dense(model)
    exact = root @ H @ root
    # P is known to the rounding of a pseudoinverse: 1e-16 times its condition, 1e3 here.
    assert relative(matrix_of(A), exact) < 1e-11
    pairs = eigsh(A, 2, "LA", tol=1e-9)
    truth = torch.linalg.eigvalsh(exact).flip(0)[:2]
    assert relative(pairs.values, truth) < 1e-10
    # In parameter space they are eigenvectors of P^-1 H.
    D = A.directions(pairs.vectors)
    assert relative(root @ root @ (H @ D), D * pairs.values) < 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_muon_moves_by_the_learning_rate_times_the_preconditioned_momentum(kind):
    model = Net()
    muon = pair_of(model, adjust_lr_fn=kind, nesterov=False)[0]
    generator = seeded(5)
    for _ in range(3):
        before = [tensor.detach().clone() for tensor in matrices_of(model)]
        for tensor in matrices_of(model):
            tensor.grad = torch.randn(tensor.shape, generator=generator, dtype=DOUBLE)
        muon.step()
    H = landscape.hessian(model, loss, batch(), parameters=["*.weight"])
    A = landscape.preconditioned(H, muon)
    momentum = torch.cat([muon.state[t]["momentum_buffer"].reshape(-1) for t in matrices_of(model)])
    twice = A.directions(A.directions(momentum[:, None]))[:, 0]
    for tensor, old, inverse in zip(matrices_of(model), before, A.unflatten(twice).values()):
        # torch's iteration has the 8 bits of bfloat16; an exact polar factor is 10 to 30 % away.
        assert relative(tensor.detach() - old, -RATE * inverse) < 0.03


def test_a_momentum_without_full_rank_has_a_positive_preconditioner():
    generator = seeded(3)
    weight = nn.Parameter(torch.randn(4, 6, generator=generator, dtype=DOUBLE))
    model = nn.ParameterDict({"w": weight})
    muon = Muon([weight], lr=RATE)
    column = torch.randn(4, 1, generator=generator, dtype=DOUBLE)
    row = torch.randn(1, 6, generator=generator, dtype=DOUBLE)

    def of_rank_one(model, batch):
        return (model["w"] * (column @ row)).sum() + model["w"].square().sum()

    weight.grad = column @ row
    muon.step()
    H = landscape.hessian(model, of_rank_one, ())
    A = landscape.preconditioned(H, muon)
    values = torch.linalg.eigvalsh(matrix_of(A))
    # H is 2; q(s) / s is the fifth power of its first coefficient at s = 0.
    steepest = 2 * COEFFICIENTS[0] ** 5 / float(muon.state[weight]["momentum_buffer"].norm())
    assert values.min() > 0 and float(values.max()) == pytest.approx(steepest, rel=1e-9)
    assert int((values > 0.999 * steepest).sum()) == 3 * 6


def test_matrices_that_the_loss_reaches_in_some_rows_are_scaled_as_a_whole():
    table = nn.Embedding(7, 4, dtype=DOUBLE)
    muon = Muon(table.parameters(), lr=RATE, nesterov=False)

    def squares(model, rows):
        return model(rows).pow(4).sum()

    for rows in (torch.arange(7), torch.tensor([1, 1, 5])):
        table.zero_grad()
        squares(table, rows).backward()
        muon.step()
    H = landscape.hessian(table, squares, torch.tensor([1, 5]))
    assert H.num_unused == 5 * 4
    A = landscape.preconditioned(H, muon)
    values, vectors = torch.linalg.eigh(
        inverse_by_hand(muon.state[table.weight]["momentum_buffer"], "original")
    )
    root = (vectors * values.sqrt()) @ vectors.T
    exact = root @ matrix_of(H) @ root
    assert relative(matrix_of(A), exact) < 1e-11
    assert float(eigsh(A, 1, "LA", tol=1e-9).values[0]) == pytest.approx(
        float(torch.linalg.eigvalsh(exact)[-1]), rel=1e-10
    )


@pytest.mark.parametrize("is_right", [False, True])
def test_errors_of_products_are_scaled_with_the_factors(is_right):
    generator = seeded(4)

    class Noisy(DenseOperator):
        error_estimate = 0.1

        def product_errors(self, v):
            return 1e-3 * v.abs()

    A = Noisy(torch.eye(8, dtype=DOUBLE))
    factor = torch.randn(*((3, 3) if is_right else (2, 2)), generator=generator, dtype=DOUBLE)
    factor = factor + factor.T
    B = BlockScaledOperator(A, [MatrixFactor(1, (2, 3), factor, is_right)])
    eye = [torch.eye(size, dtype=DOUBLE) for size in (2, 3)]
    block = torch.kron(eye[0], factor) if is_right else torch.kron(factor, eye[1])
    one = torch.ones(1, 1, dtype=DOUBLE)
    F = torch.block_diag(one, block, one)
    assert relative(matrix_of(B), F @ F) < 1e-14
    v = torch.randn(8, generator=generator, dtype=DOUBLE)
    torch.testing.assert_close(B.product_errors(v), F.abs() @ (1e-3 * (F @ v).abs()))
    assert B.error_estimate == pytest.approx(
        0.1 * max(1.0, float(torch.linalg.matrix_norm(F, 2))) ** 2
    )


# --- what the number decides, and what it does not ------------------------------------------------


def loss_change_of_a_step(curvature, rate):
    """The change of a quadratic loss by a step of Muon without momentum, and rate * eigenvalue."""
    weight = nn.Parameter(torch.full((1, 1), 0.3, dtype=DOUBLE))
    model = nn.ParameterDict({"w": weight})
    muon = Muon([weight], lr=rate, momentum=0.0, nesterov=False, weight_decay=0.0)

    def quadratic(model, batch):
        return 0.5 * curvature * model["w"].square().sum()

    before = quadratic(model, ())
    before.backward()
    muon.step()
    A = landscape.preconditioned(landscape.hessian(model, quadratic, ()), muon)
    value = float(eigsh(A, 1, "LA").values[0])
    return float((quadratic(model, ()) - before).detach()), rate * value


def test_without_momentum_the_step_lowers_a_quadratic_below_2_over_the_rate_and_raises_it_above():
    _, product = loss_change_of_a_step(50.0, 1.0)
    for factor, falls in ((0.98, True), (1.02, False)):
        # Along its only direction the step is rate * eigenvalue * distance, to be compared with 2;
        # torch's step is rounded to bfloat16, 0.4 %.
        change, there = loss_change_of_a_step(50.0, factor * 2 / product)
        assert there == pytest.approx(2 * factor) and (change < 0) == falls


def steady_values(curvature):
    """The eigenvalues of P^-1/2 H P^-1/2 along a long run of torch's Muon on a quadratic, times
    its learning rate.
    """
    generator = seeded(6)
    weight = nn.Parameter(torch.randn(3, 3, generator=generator, dtype=DOUBLE))
    model = nn.ParameterDict({"w": weight})
    muon = Muon([weight], lr=RATE, weight_decay=0.0)

    def quadratic(model, batch):
        return 0.5 * curvature * model["w"].square().sum()

    values = []
    for step in range(600):
        muon.zero_grad()
        quadratic(model, ()).backward()
        muon.step()
        if step >= 540:
            A = landscape.preconditioned(landscape.hessian(model, quadratic, ()), muon)
            values.append(RATE * float(eigsh(A, 1, "LA", tol=1e-6).values[0]))
    assert float(weight.detach().abs().max()) < 100 * RATE
    return torch.tensor(values)


def test_the_eigenvalue_says_nothing_of_divergence_so_there_is_no_threshold():
    """The counterexample of the documentation: the same numbers at curvatures a million apart, on
    both sides of what a constant P would allow, and nothing diverges.
    """
    constant = (2 + 2 * 0.95) / ((1 + 2 * 0.95) * (1 - 0.95))
    flat, steep = (steady_values(curvature) for curvature in (1.0, 1e6))
    for values in (flat, steep):
        assert values.min() < constant < values.max()
    assert 0.2 < float(flat.median() / steep.median()) < 5
    weight = nn.Parameter(torch.ones(2, 2))
    refused(
        lambda: landscape.stability_threshold(Muon([weight])),
        "Muon: its steps have one size",
        "there is no threshold",
    )


# --- refusals -------------------------------------------------------------------------------------


def test_what_is_not_known_is_refused_in_a_line():
    model = Net()
    H = landscape.hessian(model, loss, batch())
    optimizers = pair_of(model)
    refused(lambda: landscape.preconditioned(H, optimizers), "has made no step yet")
    refused(lambda: landscape.preconditioned(H, []), "the list is empty")
    refused(
        lambda: landscape.preconditioned(H, optimizers[0]),
        "Muon: 1 of the 4 parameters .* such as 'wide.bias'",
        "all optimizers of the model in a list",
    )
    twice = [*optimizers, torch.optim.SGD(model.parameters(), lr=RATE)]
    refused(lambda: landscape.preconditioned(H, twice), "SGD: .* also in an optimizer before it")
    train(model, optimizers)
    H = landscape.hessian(model, loss, batch())
    A = landscape.preconditioned(H, optimizers)
    refused(lambda: A.threshold, "Muon: its steps have one size")
    refused(
        lambda: landscape.stability_threshold(
            [optimizers[1], torch.optim.SGD(matrices_of(model), lr=RATE)]
        ),
        "AdamW and SGD: their steps are those of no single rule",
    )
    refused(
        lambda: landscape.preconditioner_of(H, optimizers), "Muon and AdamW: P of Muon is not dia"
    )
    group = optimizers[0].param_groups[0]
    for key, value, words in (
        ("ns_coefficients", (1.0, -3.0, 0.0), r"ns_coefficients \(1.0, -3.0, 0.0\) turn parts"),
        ("adjust_lr_fn", "another", "adjust_lr_fn is 'another'"),
    ):
        kept, group[key] = group[key], value
        refused(lambda: landscape.preconditioned(H, optimizers), words)
        group[key] = kept
    buffer = optimizers[0].state[model.wide.weight]["momentum_buffer"]
    buffer.zero_()
    refused(
        lambda: landscape.preconditioned(H, optimizers), "its momentum of 'wide.weight' is zero"
    )
    buffer.fill_(math.inf)
    refused(lambda: landscape.preconditioned(H, optimizers), "is not finite")
