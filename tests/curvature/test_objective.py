"""Objectives, the choice of parameters, and flat vectors."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape import audit
from landscape.curvature import (
    Objective,
    flatten,
    gauss_newton,
    gradient,
    hessian,
    hessian_of_batches,
    select_parameters,
    unflatten,
)
from landscape.curvature.objective import call_with_parameters, squared_norm
from landscape.errors import ObjectiveError
from landscape.linalg.operator import seeded
from tests.helpers.oracles import relative_error


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
        self.text = nn.Linear(4, 2)
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("calls", torch.zeros(()))


def names(model, patterns="all"):
    return list(select_parameters(model, patterns))


def test_all_means_every_parameter_that_requires_gradients_in_model_order():
    model = TwoTowers()
    model.text.bias.requires_grad_(False)
    expected = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names(model) == expected and "text.bias" not in expected


def test_patterns_match_whole_dotted_names_and_keep_model_order():
    model = TwoTowers()
    assert names(model, "visual.*") == [
        "visual.0.weight",
        "visual.0.bias",
        "visual.1.weight",
        "visual.1.bias",
    ]
    assert names(model, ["text.*", "logit_scale"]) == ["logit_scale", "text.weight", "text.bias"]
    assert names(model, ["*.bias", "visual.?.bias"]) == [
        "visual.0.bias",
        "visual.1.bias",
        "text.bias",
    ]


def test_selected_parameters_are_views_that_cannot_touch_the_model():
    model = TwoTowers()
    params = select_parameters(model)
    assert all(not tensor.requires_grad for tensor in params.values())
    assert params["logit_scale"].data_ptr() == model.logit_scale.data_ptr()


@pytest.mark.parametrize("patterns", ["vision.*", ["visual.*", "vision.*"]])
def test_a_pattern_that_matches_nothing_lists_the_top_level_names(patterns):
    with pytest.raises(ObjectiveError, match=r"'vision\.\*'.*logit_scale, visual, text"):
        select_parameters(TwoTowers(), patterns)


def test_a_pattern_that_matches_only_frozen_parameters_says_so():
    model = TwoTowers()
    model.text.requires_grad_(False)
    with pytest.raises(ObjectiveError, match="'text.weight' is frozen"):
        select_parameters(model, "text.*")


def test_a_model_without_parameters_and_a_choice_without_patterns_are_refused():
    with pytest.raises(ObjectiveError, match="no parameters at all"):
        select_parameters(nn.ReLU())
    with pytest.raises(ValueError, match="got none"):
        select_parameters(TwoTowers(), [])


@pytest.mark.parametrize("patterns", [5, [5], ["text.*", None]], ids=str)
def test_what_is_no_pattern_is_refused(patterns):
    with pytest.raises(
        ValueError, match='parameters must be "all", a pattern or a sequence of patterns'
    ):
        select_parameters(TwoTowers(), patterns)


@pytest.mark.parametrize(
    "use",
    [
        lambda model: hessian(model, lambda model, batch: batch.sum(), torch.ones(2)),
        lambda model: gauss_newton(
            model, lambda model, batch: batch, lambda z, batch: z.sum(), torch.ones(2)
        ),
        lambda model: hessian_of_batches(model, lambda model, batch: batch.sum(), [torch.ones(2)]),
        lambda model: audit(model, lambda model, batch: batch.sum(), torch.ones(2)),
        select_parameters,
    ],
    ids=["hessian", "gauss_newton", "hessian_of_batches", "audit", "select_parameters"],
)
def test_a_model_that_is_no_module_is_refused(use):
    with pytest.raises(ValueError, match="model must be a torch.nn.Module.*got function"):
        use(lambda batch: batch)


@pytest.mark.parametrize("pattern", ["text.weight", "visual.1.weight"])
def test_a_tied_tensor_is_chosen_by_either_name_and_counted_once(pattern):
    model = TwoTowers()
    model.text = nn.Linear(2, 2)
    model.text.weight = model.visual[1].weight
    assert names(model, pattern) == ["visual.1.weight"]
    assert names(model).count("visual.1.weight") == 1 and "text.weight" not in names(model)


@pytest.mark.parametrize("weight_decay", [-0.1, float("nan"), float("inf")])
def test_a_weight_decay_that_is_no_coefficient_is_refused(weight_decay):
    with pytest.raises(ValueError, match="weight_decay must be finite and >= 0"):
        Objective.from_closure(
            TwoTowers(), lambda model, batch: model.logit_scale, weight_decay=weight_decay
        )


def test_a_closure_sees_the_given_parameters_however_it_reaches_them():
    model = TwoTowers()
    params = {name: tensor + 1 for name, tensor in select_parameters(model).items()}
    seen = {
        "attribute": lambda model, batch: model.logit_scale,
        "submodule": lambda model, batch: model.text(torch.zeros(4)).sum(),
        "iterator": lambda model, batch: sum(parameter.sum() for parameter in model.parameters()),
        "state dict": lambda model, batch: model.state_dict(keep_vars=True)["visual.0.bias"].sum(),
    }
    expected = {
        "attribute": params["logit_scale"],
        "submodule": params["text.bias"].sum(),
        "iterator": flatten(params).sum(),
        "state dict": params["visual.0.bias"].sum(),
    }
    for name, loss in seen.items():
        value = Objective.from_closure(model, loss)(params, None)
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-6), name
    assert model.logit_scale.item() == 1.5


def test_a_tied_tensor_is_replaced_under_both_names():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    new = torch.eye(2) * 3
    output = call_with_parameters(
        model, {"0.weight": new}, lambda model, x: model(x), torch.ones(1, 2)
    )
    assert torch.equal(output, torch.full((1, 2), 9.0))


def test_a_criterion_with_parameters_of_its_own_stays_what_it_is():
    class Criterion(nn.Module):
        def __init__(self):
            super().__init__()
            self.temperature = nn.Parameter(torch.tensor(2.0))

        def forward(self, model, batch):
            return model(batch).square().mean() * self.temperature

    model, batch = nn.Linear(3, 2), torch.ones(1, 3)
    objective = Objective.from_closure(model, Criterion())
    params = select_parameters(model)
    assert set(params) == {"weight", "bias"}
    assert objective(params, batch).item() == pytest.approx(
        2 * model(batch).square().mean().item(), rel=1e-6
    )


def test_a_tensor_that_a_criterion_shares_with_the_model_is_replaced_there_too():
    class Head(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.weight = weight

        def forward(self, model, batch):
            return (model(batch) @ self.weight).square().mean()

    model = nn.Linear(2, 2, bias=False)
    new = {"weight": torch.eye(2) * 3}
    assert Objective.from_closure(model, Head(model.weight))(new, torch.ones(1, 2)).item() == 81.0
    assert Head(model.weight).weight is model.weight


def test_the_rest_of_the_model_is_held_constant_and_its_buffers_are_not_written():
    model = TwoTowers()

    def loss(model, batch):
        model.calls += 1
        return model.text(torch.ones(4)).sum() * model.logit_scale

    params = {"logit_scale": torch.tensor(2.0, requires_grad=True)}
    value = call_with_parameters(model, params, loss, None)
    value.backward()
    assert params["logit_scale"].grad is not None and model.text.weight.grad is None
    assert float(model.calls) == 0


def test_parameters_of_another_model_are_refused_by_name():
    objective = Objective.from_closure(TwoTowers(), lambda model, batch: model.logit_scale)
    with pytest.raises(ObjectiveError, match="TwoTowers: it has no parameter 'head.weight'"):
        objective({"head.weight": torch.zeros(2)}, None)


def test_the_l2_term_is_half_the_coefficient_times_the_squared_norm():
    model = nn.Linear(3, 2).double()
    params = select_parameters(model)
    objective = Objective.from_closure(
        model, lambda model, batch: model(batch).sum(), weight_decay=0.5
    )
    batch = torch.ones(1, 3, dtype=torch.float64)
    norm = sum(parameter.square().sum().item() for parameter in model.parameters())
    assert float(squared_norm(params)) == pytest.approx(norm, rel=1e-14)
    assert objective(params, batch).item() == pytest.approx(
        model(batch).sum().item() + 0.25 * norm, rel=1e-14
    )


def test_features_and_loss_compose_and_their_gradient_is_the_analytic_one():
    x, y = (
        torch.randn(6, 3, generator=seeded(0), dtype=torch.float64),
        torch.randint(0, 2, (6,), generator=seeded(1)),
    )
    objective = Objective(
        forward=lambda params, batch: batch["x"] @ params["w"],
        loss=lambda logits, batch: F.cross_entropy(logits, batch["y"]),
        weight_decay=0.1,
    )
    w = torch.randn(3, 2, generator=seeded(2), dtype=torch.float64)
    analytic = x.T @ ((x @ w).softmax(1) - F.one_hot(y, 2)) / 6 + 0.1 * w
    assert (
        relative_error(gradient(objective, {"w": w}, {"x": x, "y": y}), analytic.reshape(-1))
        < 1e-14
    )


def test_unflatten_inverts_flatten_for_scalars_and_strided_vectors():
    like = {"a": torch.zeros(2, 3), "b": torch.zeros(()), "c": torch.zeros(4)}
    column = torch.randn(11, 2, generator=seeded(0))[:, 1]
    parts = unflatten(column, like)
    assert {name: part.shape for name, part in parts.items()} == {
        name: tensor.shape for name, tensor in like.items()
    }
    assert torch.equal(flatten(parts), column)
    with pytest.raises(ValueError, match=r"total size 11 .* \(10,\)"):
        unflatten(column[:10], like)


class TwoNames(nn.Module):
    """A layer that is registered under two names, and a weight that is a parameter of two
    layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first
        self.table = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(
            torch.tanh(self.again(torch.tanh(self.first(x))) + self.table.weight.sum(0))
        )


def test_a_module_under_two_names_keeps_its_parameters_and_has_the_dense_hessian():
    model = TwoNames().double().eval()
    before = dict(model.named_parameters(remove_duplicate=False))
    values = {name: parameter.detach().clone() for name, parameter in before.items()}
    batch = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    H = hessian(model, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), batch)
    products = H @ torch.eye(H.n, dtype=torch.float64)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    assert all(torch.equal(after[name], values[name]) for name in before)

    def by_hand(weight: Tensor, bias: Tensor, table: Tensor) -> Tensor:
        x = torch.tanh(F.linear(batch[0], weight, bias))
        hidden = torch.tanh(F.linear(x, weight, bias) + table.sum(0))
        return F.cross_entropy(hidden @ table.T, batch[1])

    leaves = tuple(values[name] for name in ("first.weight", "first.bias", "table.weight"))
    blocks = torch.autograd.functional.hessian(by_hand, leaves)
    sizes = [leaf.numel() for leaf in leaves]
    dense = torch.cat(
        [
            torch.cat([block.reshape(rows, -1) for block in row], dim=1)
            for row, rows in zip(blocks, sizes)
        ]
    )
    assert tuple(H.parameter_names) == ("first.weight", "first.bias", "table.weight")
    torch.testing.assert_close(products, dense, rtol=1e-12, atol=1e-14)
