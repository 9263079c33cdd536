"""Exact row chunks against the dense Hessian of the whole batch, and what they refuse."""

from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscape.clip.objectives import contrastive_objective
from landscape.curvature import HessianOperator, Objective, select_parameters
from landscape.curvature.hvp.row_chunks import count_rows, take_rows
from landscape.curvature.objective import call_with_parameters
from landscape.errors import ObjectiveError
from landscape.linalg.operator import seeded
from landscape.towers.convolution import DepthwiseConv2d
from tests.conftest import scramble
from tests.helpers.oracles import dense_hessian, relative_error
from tests.helpers.toy_clip import make_toy_clip

# Sums of about 1e3 terms in float64, in another order.
EXACT = 1e-12
NUM_PAIRS = 18


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


class Tower(nn.Module):
    """A convolution of this project, batch norm on running statistics, layer norm."""

    def __init__(self):
        super().__init__()
        self.convolution = DepthwiseConv2d(3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 6)
        self.layer_norm = nn.LayerNorm(6)

    def forward(self, x):
        x = self.norm(F.silu(self.convolution(x)))
        return self.layer_norm(self.head(x.mean((2, 3)) + x.amax((2, 3))))


@pytest.fixture(scope="module")
def pairs():
    """A CLIP of an odd number of pairs with every parameter free, the temperature included, and its
    dense Hessian.
    """
    torch.manual_seed(0)
    tower = Tower().double()
    scramble(tower, seed=3, scale=0.3)
    objective, params = contrastive_objective(make_toy_clip(tower))
    # The tokens 8 and 0 stand in the first and the last chunk alone.
    text = torch.randint(1, 8, (NUM_PAIRS - 1, 3), generator=seeded(4))
    text[0, 0], text[-1, 1] = 8, 0
    batch = {"image": normal(NUM_PAIRS - 1, 3, 16, 16, seed=5), "text": text}
    return objective, params, batch, dense_hessian(objective, params, batch)


@pytest.mark.parametrize("rows", [1, 7, 16, NUM_PAIRS - 1, 100])
@pytest.mark.parametrize("columns", [1, 2])
def test_products_in_row_chunks_equal_those_of_the_dense_hessian_of_the_whole_batch(
    pairs, rows, columns
):
    objective, params, batch, dense = pairs
    operator = HessianOperator(objective, params, batch, rows=rows, columns=columns)
    V = normal(operator.n, 3)
    product = operator @ V
    for j in range(3):
        assert relative_error(product[:, j], dense @ V[:, j]) < EXACT
    assert operator.choice.product == "rows" and operator.choice.rows == min(rows, NUM_PAIRS - 1)


@pytest.mark.parametrize("rows", [1, 7])
def test_loss_and_support_are_those_of_the_whole_batch(pairs, rows):
    objective, params, batch, dense = pairs
    whole, chunks = (
        HessianOperator(objective, params, batch),
        HessianOperator(objective, params, batch, rows=rows),
    )
    assert chunks.loss == pytest.approx(whole.loss, rel=1e-13)
    assert torch.equal(chunks.support, whole.support) and len(chunks.support) < chunks.n
    outside = torch.ones(chunks.n, dtype=torch.bool)
    outside[chunks.support] = False
    assert not dense[outside].any()


def test_half_batches_would_not_do(pairs):
    """What row chunks are for: the mean of two half-batch Hessians is another matrix."""
    objective, params, batch, dense = pairs
    halves = [take_rows(batch, part) for part in (slice(0, 8), slice(8, None))]
    v = normal(len(dense))
    mean = sum(HessianOperator(objective, params, half) @ v for half in halves) / 2
    assert relative_error(mean, dense @ v) > 0.05


def linear_features(params, batch):
    return batch["x"] @ params["w"].T


def square_of_gram(features, batch):
    return (features @ features.T).square().mean()


def problem(forward=linear_features, loss=square_of_gram, num_rows=5, **options):
    return (
        Objective(forward, loss, **options),
        {"w": normal(3, 4)},
        {"x": normal(num_rows, 4, seed=1)},
    )


def test_weight_decay_shifts_row_chunks_too():
    plain, shifted = (HessianOperator(*problem(weight_decay=decay), rows=2) for decay in (0.0, 0.5))
    v = normal(12)
    torch.testing.assert_close(shifted @ v, plain @ v + 0.5 * v, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "loss",
    [
        lambda f, batch: f.sum(),
        lambda f, batch: f[0].square().sum(),
        lambda f, batch: f[:, 0].pow(3).sum() + 0 * f[:, 1].round().sum(),
    ],
    ids=["linear in the features", "of one row only", "of one feature only"],
)
def test_losses_that_leave_features_out(loss):
    def forward(params, batch):
        return torch.tanh(batch["x"] @ params["w"].T)

    objective, params, batch = problem(forward, loss)
    dense = dense_hessian(objective, params, batch)
    for rows in (1, 2, 5):
        assert (
            relative_error(
                HessianOperator(objective, params, batch, rows=rows) @ normal(12, 2),
                dense @ normal(12, 2),
            )
            < EXACT
        )


def test_features_may_be_any_nest_and_hold_constants_and_integers():
    def forward(params, batch):
        scores = torch.tanh(batch["x"] @ params["w"].T)
        return {"scores": scores, "rest": (batch["x"], scores.detach().argmax(1))}

    def loss(features, batch):
        pooled = features["scores"].mean(0)
        return (
            F.cross_entropy(features["scores"] * pooled, features["rest"][1])
            + features["rest"][0].mean()
        )

    objective, params, batch = problem(forward, loss)
    dense = dense_hessian(objective, params, batch)
    v = normal(12)
    for rows in (1, 3):
        assert (
            relative_error(HessianOperator(objective, params, batch, rows=rows) @ v, dense @ v)
            < EXACT
        )


def test_a_zero_hessian_is_zero_in_chunks():
    objective, params, batch = problem(loss=lambda f, batch: f.sum())
    assert not (HessianOperator(objective, params, batch, rows=2) @ normal(12, 2)).any()


# --- what is refused ------------------------------------------------------------------------------


def test_rows_coupled_by_train_mode_batch_norm_are_refused():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double().train()
    objective = module_objective(model)
    with pytest.raises(ObjectiveError, match="batch norm in train mode, which couples the rows"):
        HessianOperator(objective, select_parameters(model), {"x": normal(6, 4)}, rows=2)


def module_objective(model):
    return Objective(
        lambda params, batch: call_with_parameters(model, params, nn.Module.__call__, batch["x"]),
        square_of_gram,
        module=model,
    )


@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize(
    "couple",
    [
        lambda x: (x - x.mean(0)) / x.var(0, unbiased=False).add(1e-5).sqrt(),
        lambda x: x + 1e-9 * x.mean(0),
        lambda x: x + x.roll(1, 0),
        lambda x: x.cumsum(0),
        lambda x: x * torch.arange(len(x))[:, None],
    ],
    ids=[
        "batch norm on batch statistics",
        "a little of the mean",
        "the neighbour",
        "those before",
        "the place in the batch",
    ],
)
def test_rows_coupled_inside_the_network_are_refused(couple, rows):
    def forward(params, batch):
        return couple(linear_features(params, batch))

    objective, params, batch = problem(forward, num_rows=9)
    with pytest.raises(ObjectiveError, match="change with the other rows|are random"):
        HessianOperator(objective, params, batch, rows=rows)
    # All rows at once are no chunks: nothing is cut, and the product is right.
    v = normal(12)
    whole = HessianOperator(objective, params, batch, rows=9)
    assert relative_error(whole @ v, dense_hessian(objective, params, batch) @ v) < EXACT


def test_an_opaque_closure_is_refused(mlp_problem):
    with pytest.raises(ObjectiveError, match="Give the network and the loss apart"):
        HessianOperator(mlp_problem.objective, mlp_problem.params, mlp_problem.batch, rows=2)


@pytest.mark.parametrize(
    "forward, fragment",
    [
        (
            lambda params, batch: {"f": linear_features(params, batch), "scale": params["w"].sum()},
            r"shape \(\)",
        ),
        (lambda params, batch: linear_features(params, batch).sum(0), r"shape \(3,\)"),
        (lambda params, batch: (linear_features(params, batch), "note"), "str"),
    ],
)
def test_features_that_do_not_come_in_rows_are_refused(forward, fragment):
    with pytest.raises(ObjectiveError, match=f"one entry per row, 2 here, got.*{fragment}"):
        HessianOperator(*problem(forward, lambda f, batch: torch.tensor(0.0)), rows=2)


@pytest.mark.parametrize(
    "batch",
    [None, {"x": normal(5, 4), "y": normal(4)}, {"x": normal(5, 4), "scale": torch.tensor(1.0)}],
)
def test_a_batch_that_does_not_come_in_rows_is_refused(batch):
    with pytest.raises(ObjectiveError, match="tensors all have one entry per row"):
        HessianOperator(
            Objective(linear_features, square_of_gram), {"w": normal(3, 4)}, batch, rows=2
        )


def test_random_features_are_refused_as_random():
    def forward(params, batch):
        return linear_features(params, batch) * (1 + 1e-6 * torch.randn(1, dtype=torch.float64))

    with pytest.raises(ObjectiveError, match="The loss is random"):
        HessianOperator(*problem(forward), rows=2)


def test_an_opaque_kernel_is_found_in_chunks_and_named():
    class Opaque(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx, g):
            return 2 * g.detach() * ctx.saved_tensors[0].detach()

    class Kernel(nn.Module):
        def forward(self, x):
            return Opaque.apply(x)

    model = nn.Sequential(nn.Linear(4, 3), Kernel()).double()
    with pytest.raises(
        ObjectiveError,
        match=r"1 \(Kernel\): the backward pass of OpaqueBackward cannot be differentiated",
    ):
        HessianOperator(
            module_objective(model), select_parameters(model), {"x": normal(6, 4)}, rows=2
        )


def test_a_loss_that_takes_a_parameter_behind_the_back_of_the_features_is_refused():
    model = nn.Linear(4, 3).double()
    objective = Objective(
        lambda params, batch: call_with_parameters(model, params, nn.Module.__call__, batch["x"]),
        lambda f, batch: square_of_gram(f, batch) + model.weight.square().sum(),
        module=model,
    )
    with pytest.raises(
        ObjectiveError, match="weight: the loss uses this parameter other than through the model"
    ):
        HessianOperator(objective, select_parameters(model), {"x": normal(6, 4)}, rows=2)


def test_parameters_that_nothing_depends_on_are_refused():
    def forward(params, batch):
        return batch["x"] @ params["w"].detach().T

    with pytest.raises(ObjectiveError, match="does not depend on any of the selected parameters"):
        HessianOperator(*problem(forward), rows=2)


@pytest.mark.parametrize("rows", [0, -3])
def test_rows_that_are_not_positive_are_refused(rows):
    with pytest.raises(ValueError, match="rows must be at least 1"):
        HessianOperator(*problem(), rows=rows)


# --- rows of a batch ------------------------------------------------------------------------------


def test_rows_are_taken_from_any_nest_and_its_type_is_kept():
    Pair = namedtuple("Pair", "a b")
    x = torch.arange(6)
    batch = UserDict(x=x, parts=[x, (x, Pair(x, "name"))], flag=True)
    taken = take_rows(batch, torch.tensor([4, 1]))
    assert isinstance(taken, UserDict) and taken["flag"] is True and batch["x"] is x
    assert (
        taken["x"].tolist()
        == taken["parts"][0].tolist()
        == taken["parts"][1][1].a.tolist()
        == [4, 1]
    )
    assert taken["parts"][1][1].b == "name" and count_rows(batch) == 6 and count_rows(taken) == 2
