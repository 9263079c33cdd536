"""The Hessian operator against the dense Hessian, and what it must leave untouched."""

import copy
import gc
import random
import weakref
from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import landscape
from landscape.curvature import (
    HessianOperator,
    Objective,
    flatten,
    gradient,
    hessian,
    select_parameters,
)
from landscape.errors import ObjectiveError
from landscape.linalg.operator import seeded
from tests.helpers.oracles import dense_hessian, difference_product, plain_gradient, relative_error

# A product sums about 1e3 terms in float64, whose rounding is 1e-16 each; the issue asks for 1e-9.
EXACT = 1e-12
# Truncation of the differences: at most 2e-9 over 30 draws of the weights. A wrong rule is off by
# 1e-2 and more.
DIFFERENCES = 1e-8


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def mean_square(model, batch):
    return model(batch).square().mean()


@pytest.fixture(params=["clip", "mlp"])
def problem_and_dense(request):
    return request.getfixturevalue(f"{request.param}_problem"), request.getfixturevalue(
        f"{request.param}_hessian"
    )


# --- the oracle itself ----------------------------------------------------------------------------


def test_the_dense_oracle_of_a_quadratic_is_its_matrix():
    A = normal(6, 6)
    A = A + A.T
    objective = Objective(
        lambda params, batch: params["x"], lambda x, batch: 0.5 * x @ A @ x, weight_decay=0.7
    )
    dense = dense_hessian(objective, {"x": normal(6, seed=1)}, None)
    torch.testing.assert_close(
        dense, A + 0.7 * torch.eye(6, dtype=torch.float64), rtol=1e-14, atol=1e-14
    )


def test_the_dense_oracle_and_the_operator_agree_with_the_closed_form_of_softmax_regression():
    x, labels = normal(8, 3), torch.arange(8) % 4
    model = nn.Linear(3, 4, bias=False).double()
    objective = Objective.from_closure(
        model, lambda model, batch: F.cross_entropy(model(batch), labels)
    )
    p = (x @ model.weight.T).softmax(1).detach()
    # The mean over rows of (diag(p) - p p^T) (x) x x^T, with the class as the slow index of the
    # weight.
    spread = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    closed = torch.einsum("nab,ni,nj->aibj", spread, x, x).reshape(12, 12) / 8
    params = select_parameters(model)
    assert relative_error(dense_hessian(objective, params, x), closed) < 1e-14
    assert (
        relative_error(
            HessianOperator(objective, params, x) @ torch.eye(12, dtype=torch.float64), closed
        )
        < 1e-14
    )


def test_central_differences_confirm_the_dense_oracle_in_every_tensor_of_the_clip(
    clip_problem, clip_hessian
):
    objective, params, batch = clip_problem.objective, clip_problem.params, clip_problem.batch
    scale = clip_hessian.norm(dim=0).max()
    start = 0
    for name, tensor in params.items():
        # One random direction inside each tensor: a wrong block cannot hide behind the large ones.
        v = torch.zeros(len(clip_hessian), dtype=torch.float64)
        v[start : start + tensor.numel()] = F.normalize(normal(tensor.numel(), seed=start), dim=0)
        start += tensor.numel()
        defect = (difference_product(objective, params, batch, v) - clip_hessian @ v).norm()
        # Rounding of the gradients (|g| of about 10, 1e-16 each) over the step of 1e-3 leaves
        # 1e-12.
        assert defect < 1e-10 * scale, name


def test_central_differences_confirm_the_dense_oracle_of_the_mlp_entry_by_entry(
    mlp_problem, mlp_hessian
):
    objective, params, batch = mlp_problem.objective, mlp_problem.params, mlp_problem.batch
    columns = [
        difference_product(objective, params, batch, e)
        for e in torch.eye(len(mlp_hessian), dtype=torch.float64)
    ]
    # Truncation: step^4 / 30 times a fifth derivative of up to 1e4 along one weight.
    assert (torch.stack(columns, dim=1) - mlp_hessian).abs().max() < 1e-9 * mlp_hessian.abs().max()


# --- products -------------------------------------------------------------------------------------


def test_products_equal_those_of_the_dense_hessian(problem_and_dense):
    problem, dense = problem_and_dense
    operator = HessianOperator(problem.objective, problem.params, problem.batch)
    assert operator.shape == tuple(dense.shape)
    for seed in range(5):
        v = normal(operator.n, seed=seed)
        assert relative_error(operator @ v, dense @ v) < EXACT


def test_the_operator_is_symmetric(problem_and_dense):
    problem, dense = problem_and_dense
    operator = HessianOperator(problem.objective, problem.params, problem.batch)
    V = normal(operator.n, 8)
    gram = V.T @ (operator @ V)
    assert relative_error(gram, gram.T) < EXACT


def test_the_operator_is_linear(problem_and_dense):
    problem, _ = problem_and_dense
    operator = HessianOperator(problem.objective, problem.params, problem.batch)
    u, v = normal(operator.n, 2).unbind(1)
    assert (
        relative_error(operator @ (2.5 * u - 3 * v), 2.5 * (operator @ u) - 3 * (operator @ v))
        < EXACT
    )
    assert not (operator @ torch.zeros_like(u)).any()


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 8])
def test_a_block_equals_its_columns_however_it_is_batched(problem_and_dense, columns):
    problem, _ = problem_and_dense
    single = HessianOperator(problem.objective, problem.params, problem.batch)
    operator = HessianOperator(problem.objective, problem.params, problem.batch, columns=columns)
    V = normal(operator.n, 5)
    product = operator @ V
    assert product.shape == V.shape
    for j in range(5):
        assert relative_error(product[:, j], single @ V[:, j]) < EXACT


def test_an_empty_block_gives_an_empty_block(mlp_problem):
    operator = HessianOperator(mlp_problem.objective, mlp_problem.params, mlp_problem.batch)
    assert (operator @ torch.empty(operator.n, 0, dtype=torch.float64)).shape == (operator.n, 0)


def test_the_same_product_twice_is_the_same_to_the_bit(clip_problem):
    operator = HessianOperator(clip_problem.objective, clip_problem.params, clip_problem.batch)
    v = normal(operator.n)
    assert torch.equal(operator @ v, operator @ v)


def test_float32_parameters_give_a_float32_operator_near_the_float64_one(
    clip_problem, clip_hessian
):
    model = copy.deepcopy(clip_problem.model).float()
    batch = {"image": clip_problem.batch["image"].float(), "text": clip_problem.batch["text"]}
    operator = hessian(model, clip_problem.loss, batch)
    v = normal(operator.n)
    assert operator.dtype == torch.float32
    # 24 bits through a network of condition about 1e2.
    assert relative_error((operator @ v.float()).double(), clip_hessian @ v) < 1e-4


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2)),
        lambda: nn.Sequential(
            nn.Linear(8, 8), nn.BatchNorm1d(6, track_running_stats=False), nn.Tanh()
        ),
        lambda: nn.Sequential(nn.Linear(8, 8), nn.GroupNorm(2, 6), nn.SiLU()),
        lambda: nn.Sequential(nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4), nn.GELU()),
        lambda: nn.TransformerEncoderLayer(8, 2, 12, activation="gelu", batch_first=True),
    ],
    ids=[
        "LayerNorm",
        "batch norm on batch statistics",
        "GroupNorm",
        "batch norm on running statistics",
        "transformer layer",
    ],
)
@pytest.mark.parametrize("columns", [1, 2])
def test_layers_that_other_ways_get_wrong_agree_with_differences(build, columns):
    model = build().double().eval()
    batch = normal(4, 6, 8)
    objective, params = Objective.from_closure(model, mean_square), select_parameters(model)
    operator = HessianOperator(objective, params, batch, columns=columns)
    V = F.normalize(normal(operator.n, 2), dim=0)
    truth = torch.stack([difference_product(objective, params, batch, v) for v in V.T], dim=1)
    assert relative_error(operator @ V, truth) < DIFFERENCES


@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention_can_be_differentiated_twice(need_weights):
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double().eval()
    batch = normal(3, 5, 8)

    def loss(model, batch):
        return model(batch, batch, batch, need_weights=need_weights)[0].square().mean()

    objective, params = Objective.from_closure(attention, loss), select_parameters(attention)
    operator = HessianOperator(objective, params, batch)
    v = F.normalize(normal(operator.n), dim=0)
    assert (
        relative_error(operator @ v, difference_product(objective, params, batch, v)) < DIFFERENCES
    )


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU])
def test_recurrent_layers_that_cache_their_weights_see_the_parameters_under_study(recurrent):
    model = recurrent(3, 4, batch_first=True).double().eval()
    batch = normal(2, 5, 3)
    objective = Objective.from_closure(model, lambda model, batch: model(batch)[0].square().mean())
    params = {name: 2 * tensor for name, tensor in select_parameters(model).items()}
    operator = HessianOperator(objective, params, batch)
    v = F.normalize(normal(operator.n), dim=0)
    assert (
        relative_error(operator @ v, difference_product(objective, params, batch, v)) < DIFFERENCES
    )


# --- parameters -----------------------------------------------------------------------------------


def test_the_flat_order_is_that_of_the_named_parameters(clip_problem):
    operator = hessian(clip_problem.model, clip_problem.loss, clip_problem.batch)
    names = tuple(name for name, _ in clip_problem.model.named_parameters())
    assert operator.parameter_names == names
    parts = operator.unflatten(torch.arange(operator.n, dtype=torch.float64))
    assert [part.shape for part in parts.values()] == [
        tensor.shape for tensor in clip_problem.model.parameters()
    ]
    assert torch.equal(flatten(parts), torch.arange(operator.n, dtype=torch.float64))


@pytest.mark.parametrize(
    "patterns", ["visual.*", ["logit_scale", "transformer.*"], ["*.bias", "visual.conv1.*"]]
)
def test_selected_parameters_give_that_part_of_the_full_hessian(
    clip_problem, clip_hessian, patterns
):
    operator = hessian(
        clip_problem.model, clip_problem.loss, clip_problem.batch, parameters=patterns
    )
    full = hessian(clip_problem.model, clip_problem.loss, clip_problem.batch)
    chosen = torch.cat(
        [torch.full((p.numel(),), name in operator.params) for name, p in full.params.items()]
    )
    v = normal(operator.n)
    assert operator.n == int(chosen.sum())
    assert relative_error(operator @ v, clip_hessian[chosen][:, chosen] @ v) < EXACT


@pytest.mark.parametrize("columns", [1, 3])
def test_parameters_that_the_loss_does_not_use_have_zero_rows_and_count_in_n(columns):
    model = nn.ModuleDict(
        {"unused": nn.Linear(2, 2), "used": nn.Linear(3, 2), "late": nn.Linear(1, 1)}
    ).double()
    batch = normal(4, 3)
    objective = Objective.from_closure(
        model, lambda model, batch: model["used"](batch).pow(4).mean()
    )
    operator = HessianOperator(objective, select_parameters(model), batch, columns=columns)
    V = normal(operator.n, 4)
    product = operator @ V
    assert operator.n == 6 + 8 + 2
    assert not product[:6].any() and not product[14:].any()
    used = {name: tensor for name, tensor in operator.params.items() if name.startswith("used")}
    assert relative_error(product[6:14], dense_hessian(objective, used, batch) @ V[6:14]) < EXACT


def test_token_rows_that_no_text_uses_have_no_curvature(clip_problem):
    operator = HessianOperator(clip_problem.objective, clip_problem.params, clip_problem.batch)
    rows = operator.unflatten(operator @ normal(operator.n))["token_embedding.weight"].abs().sum(1)
    used = torch.zeros(20, dtype=torch.bool)
    used[clip_problem.batch["text"].unique()] = True
    assert used.any() and not used.all()
    assert torch.equal(rows > 0, used)


def test_a_loss_that_is_linear_in_everything_has_the_zero_hessian():
    model = nn.Linear(3, 1).double()
    operator = hessian(model, lambda model, batch: model(batch).sum(), normal(4, 3))
    assert not (operator @ normal(operator.n, 2)).any()


@pytest.mark.parametrize("columns", [1, 2])
def test_a_parameter_that_enters_linearly_keeps_its_mixed_derivatives(columns):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    objective = Objective.from_closure(model, lambda model, batch: model(batch).sum())
    params, batch = select_parameters(model), normal(4, 3)
    operator = HessianOperator(objective, params, batch, columns=columns)
    V = normal(operator.n, 2)
    dense = dense_hessian(objective, params, batch)
    assert not torch.diagonal(dense).any() and dense.any()
    assert relative_error(operator @ V, dense @ V) < EXACT


def test_a_gradient_of_detached_zeros_is_no_fault():
    model = nn.Linear(3, 2).double()
    batch = normal(4, 3)
    rounded = hessian(
        model, lambda model, batch: model(batch).square().mean() + model.weight.round().sum(), batch
    )
    plain = hessian(model, mean_square, batch)
    v = normal(plain.n)
    assert torch.equal(rounded @ v, plain @ v)


@pytest.mark.parametrize("smooth, diagonal", [(3.0, 6.0), (0.0, 0.0)])
@pytest.mark.parametrize("columns", [1, 3])
def test_a_parameter_that_is_only_rounded_has_zero_rows(smooth, diagonal, columns):
    model = nn.Linear(3, 2).double()

    def loss(model, batch):
        return model.weight.round().sum() + (smooth * model.bias.square().sum() if smooth else 0)

    operator = HessianOperator(
        Objective.from_closure(model, loss), select_parameters(model), None, columns=columns
    )
    expected = torch.tensor([0.0] * 6 + [diagonal] * 2, dtype=torch.float64)
    assert torch.equal(operator @ torch.eye(8, dtype=torch.float64), torch.diag(expected))


def test_weight_decay_shifts_the_hessian_by_exactly_its_coefficient(clip_problem):
    model, loss, batch = clip_problem.model, clip_problem.loss, clip_problem.batch
    plain, shifted = hessian(model, loss, batch), hessian(model, loss, batch, weight_decay=0.25)
    v = normal(plain.n)
    torch.testing.assert_close(shifted @ v, plain @ v + 0.25 * v, rtol=1e-15, atol=1e-15)
    squares = sum(float(parameter.detach().square().sum()) for parameter in model.parameters())
    assert shifted.loss == pytest.approx(plain.loss + 0.125 * squares, rel=1e-12)


def test_tied_parameters_are_one_parameter_with_the_curvature_of_both_uses():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.embed(tokens).tanh())

    model, tokens = Tied().double(), torch.tensor([0, 3, 3, 1])
    objective = Objective.from_closure(
        model, lambda model, tokens: F.cross_entropy(model(tokens), tokens.roll(1))
    )
    operator = HessianOperator(objective, select_parameters(model), tokens)
    written_out = Objective(
        lambda params, tokens: params["w"][tokens].tanh() @ params["w"].T,
        lambda logits, tokens: F.cross_entropy(logits, tokens.roll(1)),
    )
    truth = dense_hessian(written_out, {"w": model.embed.weight.detach()}, tokens)
    assert operator.parameter_names == ("embed.weight",)
    assert relative_error(operator @ torch.eye(15, dtype=torch.float64), truth) < EXACT


def test_the_order_of_given_parameters_is_the_flat_order(mlp_problem, mlp_hessian):
    backwards = dict(reversed(mlp_problem.params.items()))
    operator = HessianOperator(mlp_problem.objective, backwards, mlp_problem.batch)
    v = normal(operator.n)
    there = flatten({name: operator.unflatten(v)[name] for name in mlp_problem.params})
    product = operator.unflatten(operator @ v)
    assert (
        relative_error(
            flatten({name: product[name] for name in mlp_problem.params}), mlp_hessian @ there
        )
        < EXACT
    )


# --- loss, gradient, batches ----------------------------------------------------------------------


def test_the_loss_is_that_of_the_model(clip_problem):
    operator = HessianOperator(clip_problem.objective, clip_problem.params, clip_problem.batch)
    assert isinstance(operator.loss, float)
    assert operator.loss == pytest.approx(
        clip_problem.loss(clip_problem.model, clip_problem.batch).item(), rel=1e-14
    )


@pytest.mark.parametrize("name", ["clip", "mlp"])
def test_the_gradient_is_that_of_the_plain_model(name, request):
    problem = request.getfixturevalue(f"{name}_problem")
    model = copy.deepcopy(problem.model)
    problem.loss(model, problem.batch).backward()
    truth = torch.cat(
        [(p.grad + problem.weight_decay * p).reshape(-1) for p in model.parameters()]
    ).detach()
    value = gradient(problem.objective, problem.params, problem.batch)
    assert relative_error(value, truth) < 1e-14
    assert (
        relative_error(plain_gradient(problem.objective, problem.params, problem.batch), truth)
        < 1e-14
    )
    assert not value.requires_grad


def test_the_operator_equals_differences_of_this_projects_gradient(clip_problem):
    objective, params, batch = clip_problem.objective, clip_problem.params, clip_problem.batch
    operator = HessianOperator(objective, params, batch)
    v = F.normalize(normal(operator.n), dim=0)
    step = operator.unflatten(1e-4 * v)
    ahead = gradient(
        objective, {name: tensor + step[name] for name, tensor in params.items()}, batch
    )
    behind = gradient(
        objective, {name: tensor - step[name] for name, tensor in params.items()}, batch
    )
    # Truncation: step^2 times a third derivative of about 10.
    assert relative_error((ahead - behind) / 2e-4, operator @ v) < 1e-6


@pytest.mark.parametrize(
    "wrap", [dict, UserDict, lambda pairs: tuple(dict(pairs).values()), lambda pairs: [dict(pairs)]]
)
def test_a_batch_is_any_nest_of_tensors(wrap):
    model = nn.Linear(3, 2).double()
    x, y = normal(4, 3), torch.tensor([0, 1, 1, 0])

    def loss(model, batch):
        if isinstance(batch, list):
            batch = batch[0]
        inputs, labels = batch if isinstance(batch, tuple) else (batch["x"], batch["y"])
        return F.cross_entropy(model(inputs), labels)

    operator = hessian(model, loss, wrap([("x", x), ("y", y)]))
    truth = hessian(model, lambda model, _: F.cross_entropy(model(x), y), None)
    v = normal(operator.n)
    assert torch.equal(operator @ v, truth @ v)


def test_three_lines_of_the_package_give_an_eigenvalue(mlp_problem, mlp_hessian):
    operator = landscape.hessian(
        mlp_problem.model, mlp_problem.loss, mlp_problem.batch, weight_decay=0.3
    )
    pairs = landscape.eigsh(operator, k=3, which="LM", tol=1e-8, seed=0)
    truth = torch.linalg.eigvalsh(mlp_hessian)
    truth = truth[truth.abs().argsort(descending=True)][:3]
    torch.testing.assert_close(pairs.values, truth, rtol=1e-8, atol=0)


# --- what must stay as it was ---------------------------------------------------------------------


class Stateful(nn.Module):
    """Writes a buffer at every evaluation, has a frozen part, a mixed training mode and gradients
    from before.
    """

    def __init__(self):
        super().__init__()
        self.first, self.second, self.frozen = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(4).eval()
        self.register_buffer("calls", torch.zeros(()))
        self.frozen.requires_grad_(False)

    def forward(self, x):
        self.calls += 1
        return self.frozen(self.second(self.norm(self.first(x)).tanh()))


def test_building_and_multiplying_leave_the_model_and_all_random_state_untouched():
    model = Stateful().double()
    model.second.eval()
    model.first.weight.grad = torch.full_like(model.first.weight, 7.0)
    batch = normal(4, 3).requires_grad_()
    before = copy.deepcopy(model.state_dict())
    pointers = [
        (id(tensor), tensor.data_ptr(), tensor._version)
        for tensor in (*model.parameters(), *model.buffers())
    ]
    flags = [
        (part.training, len(part._forward_hooks), len(part._forward_pre_hooks))
        for part in model.modules()
    ]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    operator = hessian(model, mean_square, batch)
    operator @ normal(operator.n, 2)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert pointers == [
        (id(tensor), tensor.data_ptr(), tensor._version)
        for tensor in (*model.parameters(), *model.buffers())
    ]
    assert flags == [
        (part.training, len(part._forward_hooks), len(part._forward_pre_hooks))
        for part in model.modules()
    ]
    assert wanted == [parameter.requires_grad for parameter in model.parameters()]
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["first.weight"]
    assert bool((model.first.weight.grad == 7).all()) and batch.grad is None


def test_a_refusal_in_the_middle_leaves_the_model_untouched_too():
    model = nn.Linear(3, 2).double()
    own = model.weight
    state = torch.get_rng_state()
    with pytest.raises(ObjectiveError):
        hessian(
            model,
            lambda model, batch: (model(batch) + torch.rand(())).sum().log() * float("nan"),
            normal(4, 3),
        )
    assert model.weight is own and own.grad is None and torch.equal(torch.get_rng_state(), state)
    assert (
        not nn.modules.module._global_forward_hooks
        and not nn.modules.module._global_forward_pre_hooks
    )


@pytest.mark.parametrize("change", ["optimiser", "data", "load_state_dict", "buffer", "unselected"])
def test_training_on_does_not_change_the_operator(change):
    model = (
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
        .double()
        .eval()
    )
    batch = normal(5, 3)
    operator = hessian(model, mean_square, batch, parameters=["0.*", "1.*"])
    v = normal(operator.n)
    before = operator @ v
    if change == "optimiser":
        mean_square(model, batch).backward()
        torch.optim.AdamW(model.parameters(), lr=0.5).step()
    elif change == "data":
        model[0].weight.data.add_(1)
    elif change == "load_state_dict":
        model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})
    elif change == "buffer":
        model[1].running_var.add_(3)
    else:
        model[3].weight.data.add_(1)
    assert torch.equal(operator @ v, before)
    moved = hessian(model, mean_square, batch, parameters=["0.*", "1.*"])
    assert relative_error(moved @ v, before) > 1e-3


def test_a_batch_that_is_changed_in_place_makes_the_next_product_raise():
    batch = normal(4, 3)
    operator = hessian(nn.Linear(3, 2).double(), mean_square, batch)
    operator @ normal(operator.n)
    batch.mul_(2)
    with pytest.raises(ObjectiveError, match="changed in place"):
        operator @ normal(operator.n)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(mode, mlp_problem, mlp_hessian):
    v = normal(len(mlp_hessian))
    with mode():
        model = copy.deepcopy(mlp_problem.model)
        operator = hessian(
            model, mlp_problem.loss, mlp_problem.batch, weight_decay=mlp_problem.weight_decay
        )
        product = operator @ v
    assert relative_error(product, mlp_hessian @ v) < EXACT
    assert not product.requires_grad and not (operator @ v.clone().requires_grad_()).requires_grad


def test_dropping_the_operator_frees_its_graph_at_once(mlp_problem):
    gc.disable()
    try:
        operator = HessianOperator(mlp_problem.objective, mlp_problem.params, mlp_problem.batch)
        operator @ normal(operator.n)
        leaf = weakref.ref(next(iter(operator._engine._problem.leaves.values())))
        del operator
        assert leaf() is None
    finally:
        gc.enable()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("columns", [1, 3])
def test_products_on_a_gpu_equal_those_on_the_cpu(clip_problem, clip_hessian, columns):
    model = copy.deepcopy(clip_problem.model).cuda()
    batch = {name: tensor.cuda() for name, tensor in clip_problem.batch.items()}
    objective = Objective.from_closure(model, clip_problem.loss)
    state = torch.cuda.get_rng_state()
    operator = HessianOperator(objective, select_parameters(model), batch, columns=columns)
    V = normal(operator.n, 3)
    assert relative_error((operator @ V.cuda()).cpu(), clip_hessian @ V) < 1e-10
    assert torch.equal(torch.cuda.get_rng_state(), state)
    with pytest.raises(ObjectiveError, match="is on cpu, but the parameters are on cuda:0"):
        HessianOperator(objective, select_parameters(model), clip_problem.batch)


def test_columns_must_be_positive(mlp_problem):
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        HessianOperator(mlp_problem.objective, mlp_problem.params, mlp_problem.batch, columns=0)
