"""The Hessian of many batches: the average of dense Hessians, one graph at a time, and the same
matrix at every product.
"""

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import landscape
from landscape.curvature import HessianOfBatches, HessianOperator, Objective, select_parameters
from landscape.curvature.hvp.memory import MemoryWatch
from landscape.errors import ObjectiveError
from landscape.linalg import average, seeded
from tests.conftest import contrastive_loss
from tests.curvature.test_products import rowwise
from tests.helpers.oracles import dense_hessian, relative_error

# A product sums about 1e3 terms in float64.
EXACT = 1e-12


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def three_batches():
    return [(normal(4, 4, seed=seed), (torch.arange(4) + seed) % 3) for seed in range(3)]


def dense_average(objective, params, batches, weights):
    return sum(
        weight * dense_hessian(objective, params, batch) for weight, batch in zip(weights, batches)
    ) / sum(weights)


@pytest.mark.parametrize("keep_graphs", [False, True])
@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 3.0]])
def test_it_is_the_weighted_average_of_the_dense_hessians(
    mlp_problem, three_batches, weights, keep_graphs
):
    options = {"weight_decay": 0.3, "weights": weights, "keep_graphs": keep_graphs}
    H = landscape.hessian_of_batches(
        mlp_problem.model, cross_entropy, iter(three_batches), **options
    )
    objective = Objective.from_closure(mlp_problem.model, cross_entropy, weight_decay=0.3)
    given = weights or [1.0, 1.0, 1.0]
    truth = dense_average(objective, mlp_problem.params, three_batches, given)
    assert relative_error(H @ torch.eye(H.n, dtype=torch.float64), truth) < EXACT
    values = [float(objective(mlp_problem.params, batch)) for batch in three_batches]
    assert H.loss == pytest.approx(
        sum(w * v for w, v in zip(given, values)) / sum(given), rel=1e-14
    )
    assert H.num_batches == 3 and H.support is None


def test_equal_batches_of_a_mean_over_rows_average_to_the_hessian_of_all_rows(
    mlp_problem, three_batches
):
    together = tuple(torch.cat(parts) for parts in zip(*three_batches))
    H = landscape.hessian_of_batches(mlp_problem.model, cross_entropy, three_batches)
    whole = landscape.hessian(mlp_problem.model, cross_entropy, together)
    V = normal(H.n, 3)
    assert relative_error(H @ V, whole @ V) < EXACT


@pytest.mark.parametrize("sizes", [(10, 10, 5), (32, 1), (1, 2, 3, 4)])
def test_batches_of_unequal_size_count_by_their_rows_and_give_the_hessian_of_all_rows(
    mlp_problem, sizes
):
    rows = normal(sum(sizes), 4, seed=5), torch.arange(sum(sizes)) % 3
    batches = list(zip(*(part.split(sizes) for part in rows)))
    H = landscape.hessian_of_batches(mlp_problem.model, cross_entropy, batches)
    objective = Objective.from_closure(mlp_problem.model, cross_entropy)
    truth = dense_hessian(objective, mlp_problem.params, rows)
    assert relative_error(H @ torch.eye(H.n, dtype=torch.float64), truth) < EXACT
    assert H.weights == pytest.approx([size / sum(sizes) for size in sizes])
    equally = landscape.hessian_of_batches(
        mlp_problem.model, cross_entropy, batches, weights=[1.0] * len(sizes)
    )
    assert relative_error(equally @ torch.eye(H.n, dtype=torch.float64), truth) > 0.05


def test_batches_whose_rows_cannot_be_counted_ask_for_weights_where_they_differ(mlp_problem):
    def loss(model, batch):
        return cross_entropy(model, batch[:2]) * batch[2]

    def batch(size):
        return (
            normal(size, 4, seed=size),
            torch.arange(size) % 3,
            torch.tensor(2.0, dtype=torch.float64),
        )

    assert landscape.hessian_of_batches(mlp_problem.model, loss, [batch(3), batch(3)]).weights == (
        0.5,
        0.5,
    )
    with pytest.raises(ValueError, match=r"rows cannot be counted .*batch 1 is .*Pass weights="):
        landscape.hessian_of_batches(mlp_problem.model, loss, [batch(3), batch(4)])
    assert (
        landscape.hessian_of_batches(
            mlp_problem.model, loss, [batch(3), batch(4)], weights=[3, 4]
        ).num_batches
        == 2
    )


def test_of_a_contrastive_loss_it_equals_the_average_of_operators_and_unites_their_supports(
    clip_problem,
):
    batch = clip_problem.batch
    batches = [
        {key: value[rows] for key, value in batch.items()}
        for rows in (slice(0, 3), slice(3, 6), slice(1, 5))
    ]
    objective, params = (
        Objective.from_closure(clip_problem.model, contrastive_loss),
        clip_problem.params,
    )
    H = HessianOfBatches(objective, params, batches)
    kept = average([HessianOperator(objective, params, batch) for batch in batches])
    V = normal(H.n, 2)
    assert relative_error(H @ V, kept @ V) < EXACT
    assert torch.equal(H.support, kept.support)
    largest = landscape.eigsh(H, 2, tol=1e-6)
    torch.testing.assert_close(
        largest.values, landscape.eigsh(kept, 2, tol=1e-6).values, rtol=1e-9, atol=0
    )


def test_chunks_of_rows_are_the_same_average_in_the_memory_of_a_chunk():
    objective, params, _ = rowwise()
    batches = [rowwise(num_rows=size)[2] for size in (24, 7, 1)]
    weights = [24, 7, 1]
    whole = HessianOfBatches(objective, params, batches, weights=weights)
    with MemoryWatch(2**40) as watch:
        chunked = HessianOfBatches(objective, params, batches, weights=weights, rows=4)
        V = normal(whole.n, 2)
        products = chunked @ V
    assert relative_error(products, whole @ V) < EXACT
    assert (
        chunked.losses == pytest.approx(whole.losses, rel=1e-13)
        and chunked.support is None is whole.support
    )
    with MemoryWatch(2**40) as one:
        HessianOfBatches(objective, params, batches[:1]) @ V
    assert watch.peak < 0.4 * one.peak


def test_chunks_are_refused_where_they_cannot_be(mlp_problem, three_batches):
    closure = Objective.from_closure(mlp_problem.model, cross_entropy)
    with pytest.raises(
        ObjectiveError, match="batch 0 of 3: Row chunks cannot be used: nothing says"
    ):
        HessianOfBatches(closure, mlp_problem.params, three_batches, rows=2)
    with pytest.raises(ValueError, match="keep_graphs"):
        HessianOfBatches(closure, mlp_problem.params, three_batches, rows=2, keep_graphs=True)
    objective, params, batch = rowwise()
    with pytest.raises(ValueError, match="rows must be a whole number from 1 on, got 0"):
        HessianOfBatches(objective, params, [batch], rows=0)


class Watched(torch.autograd.Function):
    """The identity, whose nodes count themselves for as long as their graph lives."""

    alive: weakref.WeakSet = weakref.WeakSet()
    most = 0

    class Token:
        pass

    @staticmethod
    def forward(ctx, x):
        ctx.token = Watched.Token()
        Watched.alive.add(ctx.token)
        Watched.most = max(Watched.most, len(Watched.alive))
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clone()


def test_no_graph_is_kept_and_never_more_than_one_lives_unless_asked_for(three_batches):
    model = nn.Linear(4, 3).double()

    def loss(model, batch):
        return F.cross_entropy(Watched.apply(model(batch[0])), batch[1])

    Watched.most = 0
    lazy = landscape.hessian_of_batches(model, loss, three_batches)
    assert len(Watched.alive) == 0
    lazy @ normal(lazy.n, 2)
    # The graph that is built while the last one is let go.
    assert len(Watched.alive) == 0 and Watched.most <= 2
    eager = landscape.hessian_of_batches(model, loss, three_batches, keep_graphs=True)
    assert len(Watched.alive) == 3
    V = normal(lazy.n, 2)
    assert relative_error(eager @ V, lazy @ V) < EXACT


def test_a_block_of_vectors_costs_one_evaluation_of_each_batch(three_batches):
    model, evaluations = nn.Linear(4, 3).double(), []

    def loss(model, batch):
        evaluations.append(batch)
        return cross_entropy(model, batch)

    H = landscape.hessian_of_batches(model, loss, three_batches, weights=[1, 1, 0], check=False)
    assert len(evaluations) == 6
    H @ normal(H.n, 5)
    # A batch of weight 0 is not looked at.
    assert len(evaluations) == 8


def test_training_on_does_not_touch_it_but_what_it_cannot_copy_must_stay(three_batches):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    H = landscape.hessian_of_batches(model, cross_entropy, three_batches, parameters="0.*")
    v = normal(H.n)
    before = H @ v
    with torch.no_grad():
        model[0].weight.add_(1)
    assert torch.equal(H @ v, before)
    with torch.no_grad():
        model[2].weight.mul_(1.01)
    with pytest.raises(ObjectiveError, match="batch 0 of 3: its loss is .* now and was .* copy"):
        H @ v
    H = landscape.hessian_of_batches(model, cross_entropy, three_batches)
    three_batches[1][0].mul_(2)
    with pytest.raises(ObjectiveError, match="batch 1 of 3: its loss"):
        H @ normal(H.n)


def test_a_single_batch_in_the_place_of_several_is_refused_or_explained(three_batches):
    model = nn.Linear(4, 3).double()
    x, y = three_batches[0]
    for batches, got in ((x, "Tensor"), ({"x": x, "y": y}, "dict"), (5, "int")):
        with pytest.raises(
            ValueError, match=rf"batches must be a sequence of batches.*got {got}.*\[batch\]"
        ):
            landscape.hessian_of_batches(model, cross_entropy, batches)
    # A pair of tensors may be two batches: only what the loss raises tells.
    with pytest.raises(RuntimeError) as raised:
        landscape.hessian_of_batches(model, cross_entropy, (x, y))
    assert any(
        "item 0 of 2 in `batches`" in note and "[batch]" in note for note in raised.value.__notes__
    )
    H = landscape.hessian_of_batches(model, lambda model, x: model(x).square().mean(), (x, 2 * x))
    assert H.num_batches == 2


def test_a_batch_that_is_refused_is_named(three_batches):
    model = nn.Linear(4, 3).double()
    bad = copy.deepcopy(three_batches)
    bad[2][0][0, 0] = float("nan")
    with pytest.raises(ObjectiveError, match="batch 2 of 3: The loss is nan"):
        landscape.hessian_of_batches(model, cross_entropy, bad)
    bad[1] = (bad[1][0].to("meta"), bad[1][1])
    with pytest.raises(ObjectiveError, match="batch 1 of 3: .*meta"):
        landscape.hessian_of_batches(model, cross_entropy, bad)
    H = landscape.hessian_of_batches(model, cross_entropy, three_batches)
    with pytest.raises(ObjectiveError, match="batch 0 of 3: .*not finite"):
        H @ torch.full((H.n,), float("inf"), dtype=torch.float64)
    with pytest.raises(ValueError, match="at least one batch, got none"):
        HessianOfBatches(Objective.from_closure(model, cross_entropy), select_parameters(model), [])
    with pytest.raises(ValueError, match="3 finite weights"):
        landscape.hessian_of_batches(model, cross_entropy, three_batches, weights=[1, 2])
