"""Slices of a loss: directions, values, curvature and barriers against closed forms, loops and
dense Hessians.
"""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from landscape.curvature import HessianOperator, Objective, select_parameters
from landscape.errors import ObjectiveError
from landscape.linalg import EigenPairs, eigsh, seeded
from landscape.surface import (
    Axis,
    LossSlice,
    LossSurface,
    centred,
    eigenvector_directions,
    fill,
    filter_axes,
    filter_normalised,
    fit_curvature,
    line_losses,
    local_model,
    losses_along,
    random_directions,
)
from landscape.towers import Simba, VMamba
from tests.conftest import Problem
from tests.helpers.oracles import dense_hessian, plain_gradient

# --- directions -----------------------------------------------------------------------------------

FILTERS = {
    "fc.weight": ((3, 4), [np.s_[i, :] for i in range(3)]),
    "conv.weight": ((2, 3, 2, 2), [np.s_[i] for i in range(2)]),
    "attn.in_proj_weight": ((6, 2), [np.s_[i, :] for i in range(6)]),
    "token_embedding.weight": ((5, 2), [np.s_[i, :] for i in range(5)]),
    "visual.proj": ((4, 3), [np.s_[:, j] for j in range(3)]),
    "text_projection": ((2, 3), [np.s_[:, j] for j in range(3)]),
    "op.x_proj_weight": ((4, 3, 5), [np.s_[k, i, :] for k in range(4) for i in range(3)]),
    "op.dt_projs_weight": ((4, 5, 2), [np.s_[k, i, :] for k in range(4) for i in range(5)]),
    "op.A_logs": ((6, 2), [np.s_[i, :] for i in range(6)]),
    "mamba.A_log": ((3, 4), [np.s_[i, :] for i in range(3)]),
}
STILL = {
    "fc.bias": (3,),
    "norm.weight": (4,),
    "op.dt_projs_bias": (4, 5),
    "op.Ds": (6,),
    "logit_scale": (),
    "cls": (7,),
}


def test_every_filter_gets_the_norm_of_the_models_filter_by_the_rule_written_out():
    generator = seeded(0)
    shapes = {name: shape for name, (shape, _) in FILTERS.items()} | STILL
    params = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    params["fc.weight"][1] = 0
    draw = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    normalised = filter_normalised(draw, params)
    for name, (_, filters) in FILTERS.items():
        expected = np.zeros(params[name].shape)
        for part in filters:
            d, w = draw[name].numpy()[part], params[name].numpy()[part]
            expected[part] = d / math.sqrt((d**2).sum()) * math.sqrt((w**2).sum())
        np.testing.assert_allclose(
            normalised[name].numpy(), expected, rtol=1e-14, atol=0, err_msg=name
        )
        assert (
            sum(np.zeros(params[name].shape)[part].size for part in filters) == params[name].numel()
        )
    assert all(not normalised[name].any() for name in STILL)
    assert not normalised["fc.weight"][1].any()


def test_the_parameters_of_the_mamba_towers_have_the_filters_that_the_table_says():
    vmamba = dict(VMamba(dims=(6, 8), depths=(1, 1), gated=False, num_classes=0).named_parameters())
    simba = dict(
        Simba(
            stem=4, dims=(4, 4, 4, 4), depths=(1, 1, 1, 1), num_states=2, num_classes=0
        ).named_parameters()
    )
    found = {
        name.rpartition(".")[2]: filter_axes(name, tensor)
        for name, tensor in (vmamba | simba).items()
    }
    assert found["x_proj_weight"] == found["dt_projs_weight"] == (0, 1)
    assert found["dt_projs_bias"] is None and found["Ds"] is None and found["D"] is None
    assert found["A_logs"] == found["A_log"] == (0,)


def test_random_directions_follow_their_seed_and_are_nearly_orthogonal(clip_problem: Problem):
    params = clip_problem.params
    one, again, other = (random_directions(params, 2, generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(one[0].vector, again[0].vector) and not torch.equal(
        one[0].vector, other[0].vector
    )
    a, b = (direction.vector for direction in one)
    # 1,800 entries: a cosine of 1 / 42 is usual, five times that is not.
    assert abs(float(a @ b) / float(a.norm() * b.norm())) < 0.12


def test_directions_of_biases_alone_are_refused():
    with pytest.raises(ObjectiveError, match="has a filter"):
        random_directions({"fc.bias": torch.ones(3)}, 1, generator=seeded(0))


def test_eigenvectors_are_turned_the_same_way_and_carry_their_bound():
    vectors = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)
    flags = torch.tensor([True, False])
    pairs = EigenPairs(torch.tensor([-4.0, 2.0]), vectors, torch.tensor([0.01, 0.5]), flags, 3)
    first, second = eigenvector_directions(pairs)
    assert first.vector.tolist() == [-0.6, 0.8] and second.vector.tolist() == [0.8, 0.6]
    assert (first.eigenvalue, second.eigenvalue) == (-4.0, 2.0)
    assert first.bound == pytest.approx(0.04) and second.bound == pytest.approx(1.0)
    assert first.converged is True and second.converged is False
    with pytest.raises(ValueError, match="return_vectors"):
        eigenvector_directions(EigenPairs(pairs.values, None, pairs.residuals, flags, 3))


# --- values ---------------------------------------------------------------------------------------


class Bowl(nn.Module):
    """loss = batch * (c + g . w + w . H w / 2): a quadratic of five weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = seeded(3)
        self.w = nn.Parameter(torch.randn(5, generator=generator, dtype=torch.float64))
        H = torch.randn(5, 5, generator=generator, dtype=torch.float64)
        self.H, self.g = H + H.T, torch.randn(5, generator=generator, dtype=torch.float64)

    def value(self, w: Tensor) -> Tensor:
        return 0.7 + self.g @ w + 0.5 * w @ self.H @ w


def bowl(weight_decay: float = 0.0):
    model = Bowl()
    objective = Objective.from_closure(
        model, lambda model, batch: batch * model.value(model.w), weight_decay=weight_decay
    )
    return model, objective, select_parameters(model)


def grid_of(loss_at, *coordinates):
    axes = [Axis(name=str(i), unit="", coordinates=c, norm=1.0) for i, c in enumerate(coordinates)]
    losses = np.full([len(c) for c in coordinates], np.nan)
    computed = np.zeros(losses.shape, dtype=bool)
    order = list(fill(axes, loss_at, losses, computed))
    assert computed.all()
    return losses, order


def test_the_surface_of_a_quadratic_is_the_quadratic_on_the_mean_of_the_batches():
    model, objective, params = bowl(weight_decay=0.4)
    batches = [torch.tensor(scale, dtype=torch.float64) for scale in (0.5, 2.0, 1.1)]
    V = torch.randn(5, 2, generator=seeded(1), dtype=torch.float64)
    loss_at = losses_along(objective, params, batches, V)
    x, y = centred(7, 1.5), centred(5, 0.3)
    losses, _ = grid_of(loss_at, x, y)
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            w = model.w.detach() + a * V[:, 0] + b * V[:, 1]
            expected = 1.2 * float(model.value(w)) + 0.2 * float(w @ w)
            assert losses[i, j] == pytest.approx(expected, rel=1e-13)
    local = local_model(objective, params, batches, V, loss=loss_at(0.0, 0.0))
    axes = tuple(Axis(name="", unit="", coordinates=c, norm=1.0) for c in (x, y))
    surface = LossSurface(
        axes=axes, losses=losses, computed=np.ones_like(losses, dtype=bool), local=local
    )
    np.testing.assert_allclose(surface.predicted, losses, rtol=1e-12)


def test_points_are_computed_from_the_middle_outwards_and_those_that_are_there_are_left_alone():
    called = []
    axes = [Axis(name="", unit="", coordinates=centred(5, 2.0), norm=1.0)] * 2
    losses, computed = np.full((5, 5), np.nan), np.zeros((5, 5), dtype=bool)
    losses[0, 3], computed[0, 3] = 7.0, True
    order = list(fill(axes, lambda a, b: called.append((a, b)) or a + 10 * b, losses, computed))
    assert order[0] == (2, 2) and len(order) == len(called) == 24 and (0, 3) not in order
    distances = [max(abs(i - 2), abs(j - 2)) for i, j in order]
    assert distances == sorted(distances)
    assert losses[0, 3] == 7.0 and losses[4, 1] == 2.0 - 10.0


def test_losses_that_are_not_finite_are_kept_as_they_are():
    def loss_at(t):
        return {0.0: 1.0, 0.5: math.inf, -0.5: math.nan}.get(t, 2.0)

    losses, _ = grid_of(loss_at, centred(5, 1.0))
    assert (
        losses[[0, 2, 4]].tolist() == [2.0, 1.0, 2.0]
        and math.isnan(losses[1])
        and losses[3] == math.inf
    )
    one = LossSlice(
        axis=Axis(name="", unit="", coordinates=centred(5, 1.0), norm=1.0),
        losses=losses,
        computed=np.ones(5, dtype=bool),
    )
    assert one.num_undefined == 2


def test_a_loss_that_overflows_is_infinity_and_one_that_is_undefined_nan_and_neither_is_an_error():
    model = Bowl()
    objective = Objective.from_closure(
        model, lambda model, batch: torch.exp(model.w[0]) + batch * torch.log(model.w[1] + 3)
    )
    vectors = torch.eye(5, dtype=torch.float64)[:, :2]
    loss_at = losses_along(objective, select_parameters(model), [torch.tensor(1.0)], vectors)
    assert (
        math.isfinite(loss_at(1, 0)) and loss_at(1e4, 0) == math.inf and math.isnan(loss_at(0, -9))
    )


# --- curvature ------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["clip_problem", "mlp_problem"])
def test_the_curvature_of_a_slice_along_an_eigenvector_is_its_eigenvalue_within_one_percent(
    problem, request
):
    """The eigenvalue from the dense Hessian; the fit from the losses of the slice alone, and by its
    own steps.
    """
    p: Problem = request.getfixturevalue(problem)
    dense = request.getfixturevalue(problem.replace("problem", "hessian")).numpy()
    pairs = eigsh(HessianOperator(p.objective, p.params, p.batch), 4, tol=1e-6)
    exact = np.linalg.eigvalsh(dense)
    exact = exact[np.argsort(-np.abs(exact))][:4]
    for number, direction in enumerate(eigenvector_directions(pairs)):
        loss_at = losses_along(p.objective, p.params, [p.batch], direction.vector[:, None])
        x = centred(31, 0.1)
        losses, _ = grid_of(loss_at, x)
        axis = Axis(name="", unit="", coordinates=x, norm=1.0)
        one = LossSlice(axis=axis, losses=losses, computed=np.ones(31, dtype=bool))
        own = fit_curvature(loss_at, radius=1.0, dtype=torch.float64)
        for fit in (one.fit(dtype=torch.float64), own):
            assert fit.value == pytest.approx(exact[number], rel=0.01)
            assert abs(fit.value - exact[number]) <= fit.error
        # By its own steps it is far better than asked: 4e-8 at worst here.
        assert own.value == pytest.approx(exact[number], rel=1e-6) and own.error < 1e-4 * abs(
            exact[number]
        )


def test_after_training_the_curvature_along_both_ends_of_the_spectrum_is_still_the_eigenvalue(
    clip_problem: Problem,
):
    """Forty steps of Adam take the toy CLIP from a loss of 2.8 to one below 1.5, where curvature is
    another.
    """
    model = copy.deepcopy(clip_problem.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        clip_problem.loss(model, clip_problem.batch).backward()
        optimizer.step()
    objective, params = Objective.from_closure(model, clip_problem.loss), select_parameters(model)
    operator = HessianOperator(objective, params, clip_problem.batch)
    assert operator.loss < 1.5
    for which in ("LA", "SA"):
        (direction,) = eigenvector_directions(eigsh(operator, 1, which, tol=1e-4))
        loss_at = losses_along(objective, params, [clip_problem.batch], direction.vector[:, None])
        fit = fit_curvature(loss_at, radius=1.0, dtype=torch.float64)
        assert fit.value == pytest.approx(direction.eigenvalue, rel=1e-4)
        assert abs(fit.value - direction.eigenvalue) <= fit.error + direction.bound


def test_the_error_of_a_fit_covers_what_it_misses():
    """On 200 random smooth functions, in both precisions and with steps that are too large or too
    small.
    """
    generator = np.random.default_rng(0)
    worst, covered = 0.0, 0
    for trial in range(200):
        amplitudes, rates, shifts = generator.normal(size=(3, 5))
        dtype, kind = (torch.float64, np.float64) if trial % 2 else (torch.float32, np.float32)

        def f(t, a=amplitudes, r=rates, s=shifts, kind=kind):
            return float(kind(3 + np.sum(a * np.cos(r * t + s))))

        truth = -float(np.sum(amplitudes * rates**2 * np.cos(shifts)))
        fit = fit_curvature(f, radius=float(10 ** generator.uniform(-2, 1)), dtype=dtype)
        covered += abs(fit.value - truth) <= fit.error
        if dtype == torch.float64:
            worst = max(worst, abs(fit.value - truth))
    assert covered >= 196 and worst < 1e-2


def test_a_fit_is_not_fooled_by_a_flat_far_field():
    """Beyond its narrow well the function is constant, so coarse second differences agree with each
    other: on a wrong value.
    """
    fit = fit_curvature(
        lambda t: -math.exp(-((t / 0.01) ** 2)), radius=1.0, dtype=torch.float64, num_steps=12
    )
    assert fit.value == pytest.approx(2e4, rel=1e-4) and abs(fit.value - 2e4) <= fit.error


def test_a_fit_is_not_fooled_by_coarse_steps_that_agree_with_each_other():
    """A narrow well in a parabola: coarse steps all see the parabola's 2, to three digits; the
    curvature is 2 + 2e-3 / 1e-6.
    """
    fit = fit_curvature(
        lambda t: t * t - 1e-3 * math.exp(-((t / 1e-3) ** 2)),
        radius=1.0,
        dtype=torch.float64,
        num_steps=14,
    )
    assert fit.value == pytest.approx(2002, rel=1e-3) and abs(fit.value - 2002) <= fit.error


def test_there_is_no_curvature_in_the_middle_of_losses_that_are_not_finite():
    fit = fit_curvature(
        lambda t: math.inf if 0 < abs(t) < 0.2 else 1 + 4 * t * t, radius=1.0, dtype=torch.float64
    )
    assert math.isnan(fit.value) and fit.error == math.inf


def test_a_fit_leaves_out_steps_whose_loss_is_not_finite_and_says_when_none_is_left():
    fit = fit_curvature(
        lambda t: math.inf if t > 0.3 else math.cos(t), radius=1.0, dtype=torch.float64
    )
    assert fit.value == pytest.approx(-1, abs=1e-8) and fit.step <= 0.3
    nothing = fit_curvature(lambda t: math.nan if t else 1.0, radius=1.0, dtype=torch.float64)
    assert math.isnan(nothing.value) and nothing.error == math.inf
    assert math.isnan(
        fit_curvature(lambda t: 1.0 if t else math.nan, radius=1.0, dtype=torch.float64).value
    )


def test_a_slice_much_wider_than_its_curvature_says_so_by_its_error():
    x = centred(5, 1.0)
    losses = -np.exp(-((x / 0.01) ** 2))
    one = LossSlice(
        axis=Axis(name="", unit="", coordinates=x, norm=1.0),
        losses=losses,
        computed=np.ones(5, dtype=bool),
    )
    fit = one.fit(dtype=torch.float64)
    assert fit.error > 0.1 * abs(fit.value)


def test_the_local_quadratic_is_that_of_the_dense_hessian_and_of_the_eigenvalues(
    clip_problem: Problem, clip_hessian: Tensor
):
    p = clip_problem
    V = torch.stack([d.vector for d in random_directions(p.params, 2, generator=seeded(0))], dim=1)
    local = local_model(p.objective, p.params, [p.batch], V, loss=1.0)
    np.testing.assert_allclose(local.hessian, (V.T @ clip_hessian @ V).numpy(), rtol=1e-10)
    given = local_model(
        p.objective, p.params, [p.batch], V, loss=1.0, eigenvalues=np.array([3.0, -1.0])
    )
    assert given.hessian.tolist() == [[3.0, 0.0], [0.0, -1.0]]
    step = 1e-5
    loss_at = losses_along(p.objective, p.params, [p.batch], V)
    differences = [
        (loss_at(step, 0) - loss_at(-step, 0)) / (2 * step),
        (loss_at(0, step) - loss_at(0, -step)) / (2 * step),
    ]
    np.testing.assert_allclose(local.slopes, differences, rtol=1e-6)
    assert given.slopes.tolist() == local.slopes.tolist()


def test_near_the_middle_the_predicted_surface_is_the_measured_one(clip_problem: Problem):
    p = clip_problem
    directions = eigenvector_directions(
        eigsh(HessianOperator(p.objective, p.params, p.batch), 2, tol=1e-8)
    )
    V = torch.stack([d.vector for d in directions], dim=1)
    loss_at = losses_along(p.objective, p.params, [p.batch], V)
    eigenvalues = np.array([d.eigenvalue for d in directions])
    local = local_model(
        p.objective, p.params, [p.batch], V, loss=loss_at(0, 0), eigenvalues=eigenvalues
    )
    x = centred(5, 2e-4)
    losses, _ = grid_of(loss_at, x, x)
    axes = tuple(Axis(name="", unit="", coordinates=x, norm=1.0) for _ in range(2))
    surface = LossSurface(
        axes=axes, losses=losses, computed=np.ones((5, 5), dtype=bool), local=local
    )
    curved = 0.5 * np.abs(eigenvalues).max() * x[-1] ** 2
    # The third order over this step is 0.6 % of the second; the slopes and the missing cross term
    # are exact.
    assert np.abs(surface.predicted - losses).max() < 0.02 * curved


def test_the_local_quadratic_of_several_batches_is_the_mean_of_theirs(mlp_problem: Problem):
    p = mlp_problem
    x, y = p.batch
    batches = [(x[:4], y[:4]), (x[4:8], y[4:8])]
    V = torch.randn(
        sum(t.numel() for t in p.params.values()), 2, generator=seeded(0), dtype=torch.float64
    )
    dense = sum(dense_hessian(p.objective, p.params, batch) for batch in batches) / 2
    slopes = sum(V.T @ plain_gradient(p.objective, p.params, batch) for batch in batches) / 2
    local = local_model(p.objective, p.params, batches, V, loss=1.0)
    np.testing.assert_allclose(local.hessian, (V.T @ dense @ V).numpy(), rtol=1e-12)
    np.testing.assert_allclose(local.slopes, slopes.numpy(), rtol=1e-12)


# --- lines ----------------------------------------------------------------------------------------


class Well(nn.Module):
    """loss = (w^2 - 1)^2 + tilt w, whose barrier between -1 and 1 is exactly 1; and a statistic
    that moves it.
    """

    def __init__(self, w: float, shift: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([w], dtype=torch.float64))
        self.register_buffer("shift", torch.tensor([shift], dtype=torch.float64))
        self.register_buffer("count", torch.tensor(3))


def well_objective(model: nn.Module):
    def loss(model, tilt):
        return ((model.w**2 - 1) ** 2 + tilt * model.w + model.shift).sum()

    return Objective.from_closure(model, loss), select_parameters(model)


def line(start: Well, end: Well, points: int = 21, tilt: float = 0.0) -> LossSlice:
    loss_at = line_losses(well_objective, start, end.state_dict(), [torch.tensor(tilt)])
    t = (centred(points, 1.0) + 1) / 2
    losses, _ = grid_of(loss_at, t)
    return LossSlice(
        axis=Axis(name="", unit="", coordinates=t, norm=2.0),
        losses=losses,
        computed=np.ones(points, dtype=bool),
    )


@pytest.mark.parametrize("tilt", [0.0, 0.3, -0.3])
def test_the_barrier_of_a_double_well_is_its_height_above_the_line_between_the_ends(tilt):
    barrier = line(Well(-1.0), Well(1.0), tilt=tilt).barrier()
    # Along the line w = 2 t - 1 the tilt is the line itself.
    assert (
        barrier.height == pytest.approx(1.0, abs=1e-14)
        and barrier.at == 0.5
        and barrier.num_missing == 0
    )


def test_there_is_no_barrier_where_the_loss_sags():
    # The bump of the double well stays below the ends.
    assert line(Well(-2.0), Well(2.0)).barrier().height == 0
    sagging = LossSlice(
        axis=Axis(name="", unit="", coordinates=np.linspace(0, 1, 5), norm=1.0),
        losses=np.linspace(-1, 1, 5) ** 2,
        computed=np.ones(5, dtype=bool),
    )
    assert sagging.barrier().height == 0


def test_both_ends_of_a_line_are_the_models_themselves_and_the_model_is_left_alone():
    start, end = Well(-0.7, shift=5.0), Well(1.3, shift=-2.0)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    one = line(start, end)
    assert one.losses[0] == pytest.approx((0.49 - 1) ** 2 + 5.0, rel=1e-15)
    assert one.losses[-1] == pytest.approx((1.69 - 1) ** 2 - 2.0, rel=1e-15)
    assert one.losses[10] == pytest.approx((0.3**2 - 1) ** 2 + 1.5, rel=1e-14)
    assert all(torch.equal(tensor, before[name]) for name, tensor in start.state_dict().items())


def test_a_barrier_with_missing_or_undefined_points_says_so():
    t = np.linspace(0, 1, 5)
    axis = Axis(name="", unit="", coordinates=t, norm=1.0)

    def barrier(losses, computed=(True,) * 5):
        return LossSlice(axis=axis, losses=np.array(losses), computed=np.array(computed)).barrier()

    gap = barrier([1.0, 3.0, np.nan, 2.0, 1.0], [True, True, False, True, True])
    assert (gap.height, gap.at, gap.num_missing) == (2.0, 0.25, 1)
    assert barrier([1.0, 3.0, np.inf, np.nan, 1.0]).height == math.inf
    assert math.isnan(barrier([np.nan, 3.0, 2.0, 2.0, 1.0]).height)
    with pytest.raises(ValueError, match="runs from -1 to 1"):
        LossSlice(
            axis=Axis(name="", unit="", coordinates=centred(5, 1.0), norm=1.0),
            losses=t,
            computed=t >= 0,
        ).barrier()


def test_there_is_no_line_between_models_of_different_shapes():
    other = nn.Module()
    other.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    other.register_buffer("shift", torch.zeros(1, dtype=torch.float64))
    other.register_buffer("count", torch.tensor(0))
    with pytest.raises(
        ObjectiveError, match=r"^w: \(1,\) at one end of the line, \(2,\) at the other"
    ):
        line_losses(well_objective, Well(1.0), other.state_dict(), [torch.tensor(0.0)])
    state = Well(1.0).state_dict()
    state["extra"] = torch.zeros(1)
    with pytest.raises(ObjectiveError, match="extra: no such tensor at one end"):
        line_losses(well_objective, Well(1.0), state, [torch.tensor(0.0)])


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: centred(30, 1.0), "odd"),
        (lambda: centred(3, 1.0), "at least 5"),
        (lambda: centred(5, 0.0), "span"),
        (lambda: centred(5, math.nan), "span"),
        (lambda: fit_curvature(lambda t: t, radius=-1.0, dtype=torch.float64), "radius"),
        (lambda: random_directions({"w": torch.ones(2, 2)}, 0, generator=seeded(0)), "count"),
        (
            lambda: filter_normalised({"w": torch.ones(2, 2)}, {"w": torch.ones(2, 3)}),
            "names and shapes",
        ),
        (lambda: losses_along(bowl()[1], bowl()[2], [], torch.zeros(5, 1)), "at least one batch"),
        (
            lambda: losses_along(bowl()[1], bowl()[2], [1], torch.zeros(4, 1)),
            r"\(5, d\), got \(4, 1\)",
        ),
        (
            lambda: LossSlice(
                axis=Axis(name="", unit="", coordinates=np.arange(4.0), norm=1.0),
                losses=np.zeros(4),
                computed=np.ones(4, dtype=bool),
            ).fit(dtype=torch.float64),
            "both sides of 0",
        ),
        (
            lambda: LossSlice(
                axis=Axis(name="", unit="", coordinates=np.arange(4.0), norm=1.0),
                losses=np.zeros(3),
                computed=np.ones(3, dtype=bool),
            ),
            r"\(4,\), got \(3,\)",
        ),
        (
            lambda: LossSlice(
                axis=Axis(name="", unit="", coordinates=np.arange(4.0), norm=1.0),
                losses=np.zeros(4),
                computed=np.zeros(4, dtype=bool),
            ),
            "nothing was computed",
        ),
    ],
)
def test_wrong_arguments_are_refused_with_what_was_given(make, words):
    with pytest.raises(ValueError, match=words):
        make()
