"""P^-1/2 H P^-1/2 against the same made of a dense Hessian, with P read off the steps that torch's
optimizers really make.
"""

import copy
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import landscape
from landscape.curvature import (
    Objective,
    gauss_newton,
    hessian,
    hessian_of_batches,
    select_parameters,
)
from landscape.curvature.operators.finite_difference import FiniteDifferenceOperator
from landscape.linalg import (
    ScaledOperator,
    average,
    check_operator,
    density,
    eigsh,
    power_iteration,
    restricted,
    seeded,
    trace,
)
from tests.helpers.oracles import dense_hessian

DOUBLE = torch.float64
RATE = 1e-2
# A few roundings of float64 in sums of some hundred terms.
ROUNDING = 1e-12


class Net(nn.Module):
    """Two layers with a norm between them; with `tied`, the second has the weight of the first,
    transposed.
    """

    def __init__(self, *, tied=False, seed=1):
        super().__init__()
        generator = seeded(seed)
        self.first = nn.Linear(5, 4, dtype=DOUBLE)
        self.norm = nn.LayerNorm(4, dtype=DOUBLE)
        self.second = nn.Linear(*((5, 4) if tied else (4, 5)), bias=False, dtype=DOUBLE)
        if tied:
            self.second.weight = self.first.weight
        self.tied = tied
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=DOUBLE))

    def forward(self, x):
        hidden = self.norm(torch.tanh(self.first(x)))
        return hidden @ self.second.weight if self.tied else self.second(hidden)


def batch(seed=2, count=12):
    generator = seeded(seed)
    return torch.randn(count, 5, generator=generator, dtype=DOUBLE), torch.randint(
        5, (count,), generator=generator
    )


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(model, optimizer, steps=7):
    """Train, and return the parameters before the last step."""
    for _ in range(steps):
        before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        optimizer.zero_grad()
        loss(model, batch()).backward()
        optimizer.step()
    return before


def two_groups(model):
    """The first layer at the reference rate, the rest at less, with another eps."""
    named = dict(model.named_parameters())
    early = [tensor for name, tensor in named.items() if name.startswith("first")]
    late = [tensor for name, tensor in named.items() if not name.startswith("first")]
    return [{"params": early}, {"params": late, "lr": 0.3 * RATE, "eps": 1e-3}]


MAKERS = {
    "Adam": partial(torch.optim.Adam, lr=RATE),
    "amsgrad": partial(torch.optim.Adam, lr=RATE, amsgrad=True, betas=(0.8, 0.5)),
    "AdamW": partial(torch.optim.AdamW, lr=RATE, weight_decay=0.3),
    "foreach": partial(torch.optim.AdamW, lr=RATE, foreach=True),
    "fused": partial(torch.optim.AdamW, lr=RATE, fused=True),
    "tensors": partial(torch.optim.AdamW, lr=torch.tensor(RATE, dtype=DOUBLE), foreach=False),
    "RMSprop": partial(torch.optim.RMSprop, lr=RATE),
    "centered": partial(torch.optim.RMSprop, lr=RATE, centered=True, momentum=0.5),
    "SGD": partial(torch.optim.SGD, lr=RATE),
    "momentum": partial(torch.optim.SGD, lr=RATE, momentum=0.9, nesterov=True),
}


def preconditioner_by_hand(name, optimizer, tensor):
    """P of one parameter, from torch's documented update rules, without the learning rate."""
    group = next(
        group
        for group in optimizer.param_groups
        if any(tensor is other for other in group["params"])
    )
    state = optimizer.state[tensor]
    if name in ("SGD", "momentum"):
        P = torch.ones_like(tensor)
    elif name == "RMSprop":
        P = state["square_avg"] ** 0.5 + group["eps"]
    elif name == "centered":
        P = (state["square_avg"] - state["grad_avg"] ** 2) ** 0.5 + group["eps"]
    else:
        t, (beta1, beta2) = int(state["step"]), group["betas"]
        v = state["max_exp_avg_sq"] if name == "amsgrad" else state["exp_avg_sq"]
        P = (1 - beta1**t) * ((v / (1 - beta2**t)) ** 0.5 + group["eps"])
    return P.detach() * (RATE / float(group["lr"]))


def scales_by_hand(name, optimizer, model, parameters="all"):
    named = dict(model.named_parameters())
    chosen = select_parameters(model, parameters)
    return (
        torch.cat(
            [preconditioner_by_hand(name, optimizer, named[key]).reshape(-1) for key in chosen]
        )
        ** -0.5
    )


def dense(model, parameters="all", weight_decay=0.0):
    objective = Objective.from_closure(model, loss, weight_decay=weight_decay)
    return dense_hessian(objective, select_parameters(model, parameters), batch())


def matrix_of(A):
    return A @ torch.eye(A.n, dtype=A.dtype)


def relative(value, truth):
    return float((value - truth).norm() / truth.norm())


def made(name="Adam", *, tied=False, parameters="all", steps=7, **options):
    model = Net(tied=tied)
    optimizer = MAKERS[name](
        two_groups(model) if name not in ("SGD", "momentum") else model.parameters(), **options
    )
    train(model, optimizer, steps)
    H = landscape.hessian(model, loss, batch(), parameters=parameters)
    return model, optimizer, H


# --- products and eigenvalues ---------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("parameters", ["all", ["first.*", "norm.bias"]])
@pytest.mark.parametrize("name", MAKERS)
def test_products_and_eigenvalues_are_those_of_the_dense_preconditioned_hessian(
    name, parameters, tied
):
    model, optimizer, H = made(name, tied=tied, parameters=parameters)
    A = landscape.preconditioned(H, optimizer)
    d = scales_by_hand(name, optimizer, model, parameters)
    exact = d[:, None] * dense(model, parameters) * d
    assert relative(matrix_of(A), exact) < ROUNDING
    values = torch.linalg.eigvalsh(exact)
    wanted = values[values.abs().argsort(descending=True)][:3]
    pairs = eigsh(A, 3, tol=1e-10)
    assert relative(pairs.values, wanted) < ROUNDING
    residuals = exact @ pairs.vectors - pairs.vectors * pairs.values
    assert (
        residuals.norm(dim=0)
        <= pairs.residuals * pairs.values.abs() + ROUNDING * values.abs().max()
    ).all()


@pytest.mark.parametrize("name", ["Adam", "amsgrad", "AdamW", "foreach", "fused", "tensors", "SGD"])
def test_the_optimizer_moves_by_the_learning_rate_times_the_preconditioned_momentum(name):
    model = Net()
    optimizer = MAKERS[name](two_groups(model) if name != "SGD" else model.parameters())
    before = train(model, optimizer)
    A = landscape.preconditioned(landscape.hessian(model, loss, batch()), optimizer)
    inverse = A.unflatten(A.scales**2)
    for key, tensor in model.named_parameters():
        group = next(
            group
            for group in optimizer.param_groups
            if any(tensor is other for other in group["params"])
        )
        momentum = tensor.grad if name == "SGD" else optimizer.state[tensor]["exp_avg"]
        decay = (
            1 - float(group["lr"]) * group["weight_decay"]
            if isinstance(optimizer, torch.optim.AdamW)
            else 1.0
        )
        moved = before[key] * decay - tensor.detach()
        # Differences of parameters of size 1 that move by 1e-2 keep some 13 digits, of single
        # entries fewer.
        torch.testing.assert_close(RATE * inverse[key] * momentum, moved, rtol=1e-9, atol=1e-14)


def test_directions_are_eigenvectors_of_the_inverse_preconditioner_times_the_hessian():
    model, optimizer, H = made()
    A = landscape.preconditioned(H, optimizer)
    pairs = eigsh(A, 2, tol=1e-12)
    u = A.directions(pairs.vectors)
    d = scales_by_hand("Adam", optimizer, model)
    assert relative((d**2)[:, None] * (dense(model) @ u), u * pairs.values) < 1e-9


def test_the_solvers_take_the_operator_and_keep_the_certificates():
    model, optimizer, H = made()
    A = landscape.preconditioned(H, optimizer)
    check_operator(A)
    values = torch.linalg.eigvalsh(matrix_of(A))
    pairs = eigsh(A, 2)
    assert pairs.checked.startswith("operator checked") and pairs.settled and pairs.copies_checked
    assert power_iteration(A, 1, tol=1e-8, max_iterations=3000).values[0] == pytest.approx(
        float(pairs.values[0]), rel=1e-5
    )
    # As many products as rows make it exact.
    assert trace(A, num_matvecs=A.n).value == pytest.approx(float(values.sum()), rel=1e-9)
    nodes = density(A, num_probes=2, seed=0).nodes
    assert (
        float(values.min()) - 1e-9 <= nodes.nan_to_num(0.0).min()
        and nodes.nan_to_num(0.0).max() <= float(values.max()) + 1e-9
    )


def test_unused_parameters_stay_out_of_the_vectors_and_need_no_state():
    model = Net()
    model.register_parameter("idle", nn.Parameter(torch.ones(3, dtype=DOUBLE)))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    train(model, optimizer)
    H = landscape.hessian(model, loss, batch())
    A = landscape.preconditioned(H, optimizer)
    assert A.num_unused == H.num_unused == 3 and torch.equal(A.support, H.support)
    exact = torch.linalg.eigvalsh(matrix_of(A))
    assert (exact == 0).sum() >= 3
    largest = eigsh(A, 1, "LA", tol=1e-10).values[0]
    assert float(largest) == pytest.approx(float(exact[-1]), rel=ROUNDING)


def test_a_group_that_does_not_move_has_zero_rows():
    model, optimizer, H = made()
    optimizer.param_groups[1]["lr"] = 0.0
    A = landscape.preconditioned(H, optimizer)
    pieces = A.unflatten(A.scales)
    assert not pieces["second.weight"].any() and pieces["first.weight"].all()
    assert not A.unflatten(matrix_of(A)[:, 0])["second.weight"].any()


def test_all_rates_of_zero_leave_the_preconditioner_as_it_is_and_the_threshold_infinite():
    model, optimizer, H = made()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    A = landscape.preconditioned(H, optimizer)
    assert A.scales.all() and A.threshold.value == float("inf")


# --- other operators ------------------------------------------------------------------------------


def test_operators_of_several_batches_gauss_newton_and_differences_are_taken_too():
    model, optimizer, H = made()
    d = scales_by_hand("Adam", optimizer, model)
    every = [batch(2), batch(5)]
    matrices = [
        dense_hessian(Objective.from_closure(model, loss), select_parameters(model), one)
        for one in every
    ]
    exact = d[:, None] * (matrices[0] + matrices[1]) / 2 * d
    A = landscape.preconditioned(hessian_of_batches(model, loss, every), optimizer)
    assert relative(matrix_of(A), exact) < ROUNDING and A.checked.startswith("operator checked")

    def outputs(model, batch):
        return model(batch[0])

    def of_outputs(logits, batch):
        return nn.functional.cross_entropy(logits, batch[1])

    G = gauss_newton(model, outputs, of_outputs, batch())
    A = landscape.preconditioned(G, optimizer)
    assert relative(
        matrix_of(A), d[:, None] * matrix_of(G) * d
    ) < ROUNDING and A.checked.startswith("operator checked")
    F = FiniteDifferenceOperator(
        Objective.from_closure(model, loss), select_parameters(model), batch()
    )
    A = landscape.preconditioned(F, optimizer)
    assert A.error_estimate == pytest.approx(float(d.max()) ** 2 * F.error_estimate, rel=1e-12)
    v = torch.randn(F.n, generator=seeded(0), dtype=DOUBLE)
    v /= v.norm()
    true = d * (dense(model) @ (d * v))
    assert float((A @ v - true).norm()) < 3 * A.error_estimate


def test_errors_of_products_are_scaled_entry_by_entry():
    model, optimizer, H = made()
    A = landscape.preconditioned(H, optimizer)
    v = torch.randn(A.n, generator=seeded(0), dtype=DOUBLE)
    # Errors of rounding are those of one vector to the last bit, so the operator's own scales have
    # to be used.
    torch.testing.assert_close(
        A.product_errors(v), A.scales * H.product_errors(A.scales * v), rtol=1e-12, atol=0
    )
    assert A.product_errors(v).any()
    rows = torch.tensor([3, 4, 9])
    assert relative(matrix_of(restricted(A, rows)), matrix_of(A)[rows][:, rows]) < ROUNDING


def test_the_check_of_products_is_made_along_a_vector_that_is_not_scaled(monkeypatch):
    """Along P^-1/2 v entries whose second moment is zero would be nearly all that is checked."""
    model, optimizer, H = made()
    seen = []
    checked = type(H)._first_product
    monkeypatch.setattr(
        type(H),
        "_first_product",
        lambda self, rows, *rest: seen.append(rows) or checked(self, rows, *rest),
    )
    A = landscape.preconditioned(H, optimizer)
    A @ torch.ones(A.n, dtype=DOUBLE)
    expected = torch.randn(1, H.n, generator=seeded(0), dtype=DOUBLE)
    assert len(seen) == 1 and torch.equal(seen[0], expected)


def test_an_operator_that_was_not_checked_says_so():
    model, optimizer, _ = made()
    H = landscape.hessian(model, loss, batch(), check=False)
    assert (
        eigsh(landscape.preconditioned(H, optimizer), 1).checked
        == "operator not checked: check=False"
    )


def test_a_copy_in_another_precision_is_measured_with_the_model_that_was_trained():
    model, optimizer, H = made()
    single = copy.deepcopy(model).float()
    own = torch.optim.AdamW(single.parameters(), lr=RATE)
    data = (batch()[0].float(), batch()[1])
    loss(single, data).backward()
    own.step()
    wide = landscape.hessian(copy.deepcopy(single).double(), loss, batch())
    with pytest.raises(ValueError, match="holds none of the .* model="):
        landscape.preconditioned(wide, own)
    A = landscape.preconditioned(wide, own, single)
    narrow = landscape.preconditioned(landscape.hessian(single, loss, data), own)
    assert A.dtype == DOUBLE and relative(narrow.scales.double(), A.scales) < 1e-6


# --- weight decay and direction -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "momentum"])
def test_the_l2_term_of_the_optimizer_is_added_group_by_group(name):
    model = Net()
    groups = two_groups(model)
    groups[1] |= {"weight_decay": 0.7}
    groups[0] |= {"weight_decay": 0.0}
    optimizer = MAKERS[name](groups)
    train(model, optimizer)
    decay = torch.cat(
        [
            torch.full((tensor.numel(),), 0.0 if key.startswith("first") else 0.7, dtype=DOUBLE)
            for key, tensor in model.named_parameters()
        ]
    )
    d = scales_by_hand(name, optimizer, model)
    A = landscape.preconditioned(landscape.hessian(model, loss, batch()), optimizer)
    assert relative(matrix_of(A), d[:, None] * (dense(model) + decay.diag()) * d) < ROUNDING


def test_an_l2_term_reaches_parameters_that_the_loss_does_not_use():
    model = Net()
    model.register_parameter("idle", nn.Parameter(torch.ones(3, dtype=DOUBLE)))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, weight_decay=0.2)
    H = landscape.hessian(model, loss, batch())
    A = landscape.preconditioned(H, optimizer)
    assert H.num_unused == 3 and A.num_unused == 0
    check_operator(A)
    assert float(matrix_of(A).diagonal()[:3].sum()) == pytest.approx(0.6)


def test_an_l2_term_that_the_operator_has_already_is_not_added_again():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, weight_decay=0.2)
    A = landscape.preconditioned(
        landscape.hessian(model, loss, batch(), weight_decay=0.2), optimizer
    )
    assert relative(matrix_of(A), dense(model, weight_decay=0.2)) < ROUNDING


def test_decoupled_decay_is_part_of_no_loss():
    model, optimizer, H = made("AdamW")
    d = scales_by_hand("AdamW", optimizer, model)
    assert (
        relative(matrix_of(landscape.preconditioned(H, optimizer)), d[:, None] * dense(model) * d)
        < ROUNDING
    )
    model, optimizer, H = made("Adam", weight_decay=0.3, decoupled_weight_decay=True)
    d = scales_by_hand("Adam", optimizer, model)
    assert (
        relative(matrix_of(landscape.preconditioned(H, optimizer)), d[:, None] * dense(model) * d)
        < ROUNDING
    )


def test_an_optimizer_that_climbs_meets_the_negated_loss():
    model, optimizer, H = made("Adam", maximize=True)
    d = scales_by_hand("Adam", optimizer, model)
    A = landscape.preconditioned(H, optimizer)
    assert relative(matrix_of(A), -d[:, None] * dense(model) * d) < ROUNDING and A.sign == -1


@pytest.mark.parametrize("in_operator", [False, True])
def test_the_decay_of_an_optimizer_that_climbs_is_not_negated(in_operator):
    model, optimizer, _ = made("SGD", maximize=True, weight_decay=0.5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    gradients = torch.autograd.grad(loss(model, batch()), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), gradients):
        parameter.grad = gradient
    rate = optimizer.param_groups[0]["lr"]
    optimizer.step()
    # torch adds the decay to the negated gradient.
    for parameter, old, gradient in zip(model.parameters(), before, gradients):
        assert relative(old - parameter.detach(), rate * (0.5 * old - gradient)) < 1e-9
    H = landscape.hessian(model, loss, batch(), weight_decay=0.5 if in_operator else 0.0)
    exact = 0.5 * torch.eye(H.n, dtype=torch.float64) - dense(model)
    assert relative(matrix_of(landscape.preconditioned(H, optimizer)), exact) < ROUNDING


# --- refusals -------------------------------------------------------------------------------------


def refused(call, *words):
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert re.search(word, message), message


def test_an_optimizer_of_another_model_or_of_a_copy_is_refused():
    model, _, H = made()
    other = torch.optim.Adam(copy.deepcopy(model).parameters())
    refused(
        lambda: landscape.preconditioned(H, other),
        "Adam: holds none of the 5 parameters",
        "another model",
    )


def test_a_parameter_that_the_optimizer_lacks_is_named():
    model = Net()
    optimizer = torch.optim.Adam(model.first.parameters(), lr=RATE)
    train(model, optimizer, 2)
    H = landscape.hessian(model, loss, batch())
    refused(
        lambda: landscape.preconditioned(H, optimizer),
        "3 of the 5 parameters",
        "norm.weight",
        "parameters=",
    )
    part = landscape.hessian(model, loss, batch(), parameters="first.*")
    assert landscape.preconditioned(part, optimizer).n == part.n


def test_an_optimizer_before_its_first_step_is_refused_where_its_state_matters():
    model = Net()
    H = landscape.hessian(model, loss, batch())
    refused(
        lambda: landscape.preconditioned(H, torch.optim.Adam(model.parameters())),
        "no step yet",
        r"optimizer.step\(\)",
    )
    refused(
        lambda: landscape.preconditioned(H, torch.optim.RMSprop(model.parameters())), "no step yet"
    )
    assert landscape.preconditioned(H, torch.optim.SGD(model.parameters(), lr=RATE)).n == H.n


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_a_state_that_was_read_before_training_is_refused(kind):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = Net()
    optimizer = kind(model.parameters(), lr=RATE)
    # Makes a step of zeros, so that there is a state to read.
    get_optimizer_state_dict(model, optimizer)
    H = landscape.hessian(model, loss, batch())
    refused(lambda: landscape.preconditioned(H, optimizer), "squares of all gradients are 0")
    train(model, optimizer, 1)
    H = landscape.hessian(model, loss, batch())
    assert landscape.preconditioned(H, optimizer).n == H.n


def test_a_parameter_without_steps_that_the_loss_depends_on_is_refused():
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    model.norm.bias.requires_grad_(False)
    train(model, optimizer, 2)
    model.norm.bias.requires_grad_(True)
    H = landscape.hessian(model, loss, batch())
    refused(lambda: landscape.preconditioned(H, optimizer), "no step for 1 of 5", "norm.bias")


def test_an_operator_of_earlier_parameters_is_refused():
    model, optimizer, H = made()
    train(model, optimizer, 1)
    refused(
        lambda: landscape.preconditioned(H, optimizer),
        "first.weight: has changed since",
        "before its next",
    )


def test_a_state_that_is_not_finite_or_of_another_shape_is_refused():
    model, optimizer, H = made()
    state = optimizer.state[model.norm.bias]
    kept = state["exp_avg_sq"].clone()
    state["exp_avg_sq"][1] = float("nan")
    refused(lambda: landscape.preconditioned(H, optimizer), "'norm.bias' is not finite")
    state["exp_avg_sq"] = kept[:2]
    refused(
        lambda: landscape.preconditioned(H, optimizer),
        r"'exp_avg_sq' of 'norm.bias' has the shape \(2,\)",
        "another model",
    )
    del state["exp_avg_sq"]
    refused(lambda: landscape.preconditioned(H, optimizer), "no 'exp_avg_sq'")


def test_a_preconditioner_of_zero_is_refused_only_where_the_loss_has_curvature():
    model = Net()
    model.register_parameter("idle", nn.Parameter(torch.ones(3, dtype=DOUBLE)))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, eps=0.0)
    train(model, optimizer, 2)
    model.idle.grad = torch.ones(3, dtype=DOUBLE)
    optimizer.step()
    optimizer.state[model.idle]["exp_avg_sq"].zero_()
    H = landscape.hessian(model, loss, batch())
    A = landscape.preconditioned(H, optimizer)
    assert not A.unflatten(A.scales)["idle"].any()
    optimizer.state[model.norm.bias]["exp_avg_sq"][1] = 0.0
    refused(
        lambda: landscape.preconditioned(H, optimizer), "'norm.bias' is 0 at 1 of 4", "eps above 0"
    )


def test_two_l2_terms_that_differ_are_refused():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, weight_decay=0.1)
    H = landscape.hessian(model, loss, batch(), weight_decay=0.2)
    refused(
        lambda: landscape.preconditioned(H, optimizer),
        "the operator has 0.2, the optimizer 0.1",
        "weight_decay=0",
    )


def test_optimizers_whose_preconditioner_is_not_known_are_refused():
    model, _, H = made()

    class Own(torch.optim.Adam):
        def step(self, closure=None):
            return super().step(closure)

    class Named(torch.optim.Adam):
        pass

    refused(
        lambda: landscape.preconditioned(H, Own(model.parameters())),
        "Own: its preconditioner is not known",
    )
    refused(
        lambda: landscape.preconditioned(H, torch.optim.Adagrad(model.parameters())),
        "Adagrad",
        "Adam, AdamW, Muon, RMSprop, SGD",
    )
    refused(lambda: landscape.preconditioned(H, {}), "must be a torch.optim.Optimizer", "got dict")
    named = Named(model.parameters(), lr=RATE)
    train(model, named, 2)
    again = landscape.hessian(model, loss, batch())
    assert landscape.preconditioned(again, named).n == H.n


def test_operators_without_named_parameters_are_refused():
    model, optimizer, H = made()
    refused(
        lambda: landscape.preconditioned(average([H, H]), optimizer),
        "Combination: does not say which parameters",
    )
    refused(lambda: landscape.preconditioned(torch.eye(2), optimizer), "needs a SymmetricOperator")
    anonymous = Objective(lambda params, batch: params["x"], lambda x, batch: (x**4).sum())
    A = landscape.HessianOperator(anonymous, {"x": torch.ones(2, dtype=DOUBLE)}, ())
    refused(
        lambda: landscape.preconditioned(A, optimizer),
        "without a module",
        r"preconditioned\(H, optimizer, model\)",
    )
    refused(
        lambda: landscape.preconditioned(H, optimizer, nn.Linear(2, 2)),
        "Linear: has no parameter 'first.weight'",
    )


def test_learning_rates_and_directions_that_cannot_be_meant_are_refused():
    model, optimizer, H = made()
    optimizer.param_groups[1]["lr"] = float("nan")
    refused(lambda: landscape.preconditioned(H, optimizer), "group 1 has the learning rate nan")
    optimizer.param_groups[1]["lr"] = RATE
    optimizer.param_groups[1]["maximize"] = True
    refused(
        lambda: landscape.preconditioned(H, optimizer),
        "maximize is False in group 0 and True in group 1",
    )


def test_scales_of_another_kind_are_refused():
    _, _, H = made()
    refused(
        lambda: ScaledOperator(H, torch.ones(3, dtype=DOUBLE)),
        "scales: must be a vector of the operator's 52 entries",
    )
    refused(
        lambda: ScaledOperator(H, torch.full((H.n,), float("inf"), dtype=DOUBLE)),
        "scales: must be finite",
    )
    ones = torch.ones(H.n, dtype=DOUBLE)
    refused(
        lambda: ScaledOperator(H, ones, ones.float()), "diagonal: must be a vector", "torch.float32"
    )


def test_operators_of_both_functions_called_hessian_are_taken_alike():
    model, optimizer, H = made()
    A, B = (
        landscape.preconditioned(operator, optimizer)
        for operator in (H, hessian(model, loss, batch()))
    )
    assert relative(matrix_of(A), matrix_of(B)) < ROUNDING


def test_the_page_runs_and_prints_what_it_says(capsys):
    page = (Path(landscape.__file__).parents[1] / "docs" / "stability.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/stability.md", "exec"), {})
    printed = capsys.readouterr().out.strip()
    said = re.search(r"prints `… (of 38000 .*?)`", page)[1]
    assert printed.endswith(said) and 0 < int(printed.split()[0]) < 38000
