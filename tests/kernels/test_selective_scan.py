"""selective_scan: mamba-ssm's conventions, its derivatives of every kind, its back ends and its
refusals.

Truth: the published recurrence written out in NumPy, and its derivatives by ordinary autograd
through a Python loop. Sums over 65 steps lose a few units in the last place; 1e-10 (1e-4 in
float32), relative to the largest entry, is what is promised.
"""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vmap
from torch.utils import deterministic

from landscape.kernels import cpu_selective, selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
FAST = ["log_depth", "cpu"]
LENGTHS = [1, 2, 63, 64, 65]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Every uninitialised tensor is NaN, so that a result which nobody wrote cannot look right by
    chance.
    """
    assert deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def random_inputs(
    batch: int,
    channels: int,
    states: int,
    length: int,
    *,
    groups: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """All inputs, of the sizes that a trained model has: A negative, step sizes on both sides of
    1.
    """
    generator = torch.Generator().manual_seed(batch * channels * states * length)
    in_time = (batch, states, length) if groups is None else (batch, groups, states, length)
    shapes = {
        "u": (batch, channels, length),
        "delta": (batch, channels, length),
        "A": (channels, states),
        "B": in_time,
    }
    shapes |= {
        "C": in_time,
        "D": (channels,),
        "z": (batch, channels, length),
        "delta_bias": (channels,),
    }
    inputs = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    inputs["A"] = -inputs["A"].exp()
    return {name: x.to(dtype) for name, x in inputs.items()}


def by_numpy(inputs: dict[str, Tensor], softplus: bool) -> tuple[np.ndarray, np.ndarray]:
    """The recurrence of Mamba's paper for one channel after the other: out and the last state."""
    x = {name: tensor.numpy() for name, tensor in inputs.items()}
    batch, channels, length = x["u"].shape
    states = x["A"].shape[1]
    out, last = np.zeros((batch, channels, length)), np.zeros((batch, channels, states))
    for i, c in itertools.product(range(batch), range(channels)):
        in_time = []
        for M in (x["B"], x["C"]):
            if M.ndim == 2:
                in_time.append(np.repeat(M[c][:, None], length, axis=1))
            else:
                in_time.append(M[i] if M.ndim == 3 else M[i, c // (channels // M.shape[1])])
        B, C = in_time
        step = x["delta"][i, c] + (x["delta_bias"][c] if "delta_bias" in x else 0)
        step = np.log1p(np.exp(step)) if softplus else step
        h = np.zeros(states)
        for t in range(length):
            h = np.exp(step[t] * x["A"][c]) * h + step[t] * B[:, t] * x["u"][i, c, t]
            out[i, c, t] = C[:, t] @ h + (x["D"][c] * x["u"][i, c, t] if "D" in x else 0)
            if "z" in x:
                out[i, c, t] *= x["z"][i, c, t] / (1 + np.exp(-x["z"][i, c, t]))
        last[i, c] = h
    return out, last


def assert_near(found: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    """Relative to the largest entry: single entries of a sum of many terms may cancel."""
    assert (
        found.shape == expected.shape and found.dtype == expected.dtype and not found.isnan().any()
    ), name
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(
        found, expected, rtol=0, atol=tolerance * scale, msg=lambda m: f"{name}: {m}"
    )


def value_and_derivatives(inputs: dict[str, Tensor], **options) -> dict[str, Tensor]:
    """The output, the gradient of a nonlinear function of it, and a Hessian-vector product by
    double backward.
    """
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    out = selective_scan(**leaves, **options)
    tensors = list(leaves.values())
    gradient = torch.autograd.grad(out.sin().sum(), tensors, create_graph=True)
    product = torch.autograd.grad(
        gradient, tensors, [torch.cos(x.detach() + i) for i, x in enumerate(tensors)]
    )
    results = {"out": out.detach()}
    results |= {f"gradient of {name}": x.detach() for name, x in zip(leaves, gradient)}
    return results | {f"product of {name}": x for name, x in zip(leaves, product)}


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("groups", [None, 1, 3])
@pytest.mark.parametrize("backend", ["reference", "log_depth", "cpu"])
def test_values_equal_the_published_recurrence(backend, groups, softplus):
    inputs = random_inputs(2, 6, 3, 21, groups=groups)
    if not softplus:
        inputs["delta"] = inputs["delta"].abs() - inputs["delta_bias"][:, None]
    expected, expected_last = by_numpy(inputs, softplus)
    options = {"delta_softplus": softplus, "backend": backend}
    out = selective_scan(**inputs, **options)
    again, last = selective_scan(**inputs, return_last_state=True, **options)
    assert_near(out, torch.from_numpy(expected), 1e-12)
    assert_near(again, torch.from_numpy(expected), 1e-12)
    assert_near(last, torch.from_numpy(expected_last), 1e-12)


@pytest.mark.parametrize("missing", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
@pytest.mark.parametrize("backend", ["reference", "log_depth", "cpu"])
def test_optional_inputs_may_be_left_out(backend, missing):
    inputs = {name: x for name, x in random_inputs(2, 3, 2, 5).items() if name not in missing}
    expected, _ = by_numpy(inputs, True)
    assert_near(
        selective_scan(**inputs, delta_softplus=True, backend=backend),
        torch.from_numpy(expected),
        1e-12,
    )


@pytest.mark.parametrize("constant", [("B",), ("C",), ("B", "C")])
@pytest.mark.parametrize("backend", ["reference", "log_depth", "cpu"])
def test_B_and_C_may_be_constant_in_time(backend, constant):
    inputs = random_inputs(2, 3, 2, 5)
    for i, name in enumerate(constant):
        inputs[name] = torch.linspace(-1, 1 + i, 6, dtype=torch.float64).reshape(3, 2)
    expected, _ = by_numpy(inputs, True)
    assert_near(
        selective_scan(**inputs, delta_softplus=True, backend=backend),
        torch.from_numpy(expected),
        1e-12,
    )


def test_B_and_C_may_have_different_groups():
    inputs = random_inputs(2, 12, 2, 5, groups=4)
    inputs["C"] = random_inputs(2, 12, 2, 5, groups=6)["C"]
    expected, _ = by_numpy(inputs, True)
    assert_near(
        selective_scan(**inputs, delta_softplus=True, backend="cpu"),
        torch.from_numpy(expected),
        1e-12,
    )


def test_arguments_have_the_positions_of_mamba_ssm():
    inputs = random_inputs(2, 3, 2, 5)
    out, last = selective_scan(*inputs.values(), True, True)
    expected, expected_last = by_numpy(inputs, True)
    assert_near(out, torch.from_numpy(expected), 1e-12)
    assert_near(last, torch.from_numpy(expected_last), 1e-12)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("backend", FAST)
def test_derivatives_pass_gradcheck_in_both_modes_and_batched(backend, length):
    inputs = random_inputs(1, 2, 1, length)
    weights = torch.linspace(-1, 1, 2 * length, dtype=torch.float64).reshape(2, length)

    def function(*tensors: Tensor) -> Tensor:
        # Few outputs keep the numerical Jacobians of gradgradcheck small; every entry of the output
        # counts.
        out = selective_scan(*tensors, delta_softplus=True, backend=backend)
        return torch.stack([out.sin().sum(), (out * weights).sum()])

    leaves = tuple(x.requires_grad_() for x in inputs.values())
    options = {"check_batched_grad": True, "fast_mode": length > 2}
    assert gradcheck(
        function, leaves, check_forward_ad=True, check_batched_forward_grad=length <= 2, **options
    )
    # gradgradcheck leaves out a gradient that has no graph: it must not pass so.
    gradients = torch.autograd.grad(function(*leaves).sum(), leaves, create_graph=True)
    assert all(gradient.requires_grad for gradient in gradients)
    assert gradgradcheck(
        function, leaves, check_fwd_over_rev=True, check_rev_over_rev=True, **options
    )


SHAPES = [(1, 1, 1, 1), (2, 3, 2, 2), (1, 17, 3, 63), (2, 16, 1, 64), (3, 24, 2, 65), (17, 2, 1, 9)]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", FAST)
def test_every_back_end_equals_the_reference_to_second_order(
    backend, shape, softplus, dtype, tolerance
):
    groups = 2 if shape[1] % 2 == 0 else None
    inputs = random_inputs(*shape, groups=groups)
    if softplus:
        # Both ends of softplus: steps that vanish, and those beyond the threshold at which torch
        # stops computing it.
        inputs["delta"][..., ::3] *= 20
    else:
        inputs["delta"] = inputs["delta"].abs() - inputs["delta_bias"][:, None] + 1e-3
    inputs = {name: x.to(dtype) for name, x in inputs.items()}
    expected = value_and_derivatives(inputs, delta_softplus=softplus, backend="reference")
    found = value_and_derivatives(inputs, delta_softplus=softplus, backend=backend)
    for name in expected:
        assert_near(found[name], expected[name], tolerance, name)


@pytest.mark.parametrize("tile_bytes", [1, 20_000, 1 << 19])
def test_the_length_of_a_tile_changes_nothing(monkeypatch, tile_bytes):
    inputs = random_inputs(1, 19, 2, 150)
    expected = value_and_derivatives(inputs, delta_softplus=True, backend="reference")
    monkeypatch.setattr(cpu_selective, "_TILE_BYTES", tile_bytes)
    found = value_and_derivatives(inputs, delta_softplus=True, backend="cpu")
    for name in expected:
        assert_near(found[name], expected[name], 1e-10, name)


def test_threads_change_nothing():
    inputs = random_inputs(3, 48, 4, 200)
    before = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            results.append(value_and_derivatives(inputs, delta_softplus=True, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    for name, x in results[0].items():
        assert torch.equal(x, results[1][name]) and torch.equal(x, results[2][name]), name


@pytest.mark.parametrize("backend", FAST)
def test_every_nesting_of_modes_gives_the_hessian_of_double_backward(backend):
    inputs = tuple(random_inputs(1, 2, 1, 3).values())
    everything = tuple(range(len(inputs)))

    def loss(backend: str):
        return lambda *tensors: (
            selective_scan(*tensors, delta_softplus=True, backend=backend).sin().sum()
        )

    truth = torch.autograd.functional.hessian(loss("reference"), inputs)
    f = loss(backend)
    nestings = {
        "forward over reverse": hessian(f, everything),
        "reverse over reverse": jacrev(jacrev(f, everything), everything),
        "reverse over forward": jacrev(jacfwd(f, everything), everything),
        "forward over forward": jacfwd(jacfwd(f, everything), everything),
    }
    for name, nesting in nestings.items():
        found = nesting(*inputs)
        for i, j in itertools.product(everything, everything):
            assert_near(found[i][j], truth[i][j], 1e-10, f"{name}, block {NAMES[i]}, {NAMES[j]}")


@pytest.mark.parametrize("modes", list(itertools.product([jacfwd, jacrev], repeat=3)))
def test_third_derivatives_equal_those_of_the_reference_in_every_mode(modes):
    inputs = random_inputs(1, 2, 1, 3)
    theta = torch.cat([x.flatten() for x in inputs.values()])
    sizes = [x.numel() for x in inputs.values()]

    def third(backend: str) -> Tensor:
        def f(move: Tensor) -> Tensor:
            parts = (theta + move * torch.cos(torch.arange(theta.numel()))).split(sizes)
            tensors = [part.reshape(x.shape) for part, x in zip(parts, inputs.values())]
            return selective_scan(*tensors, delta_softplus=True, backend=backend).sin().sum()

        for mode in modes:
            f = mode(f)
        return f(torch.zeros((), dtype=torch.float64))

    assert_near(third("cpu"), third("reference"), 1e-10)


def test_third_derivatives_by_backward_pass_gradcheck():
    leaves = tuple(x.requires_grad_() for x in random_inputs(1, 2, 1, 3).values())
    directions = [torch.cos(x.detach()) for x in leaves]

    def product(*tensors: Tensor) -> tuple[Tensor, ...]:
        out = selective_scan(*tensors, delta_softplus=True, backend="cpu")
        gradient = torch.autograd.grad(out.sin().sum(), tensors, create_graph=True)
        return torch.autograd.grad(gradient, tensors, directions, create_graph=True)

    assert gradcheck(product, leaves, check_batched_grad=True)


@pytest.mark.parametrize("backend", FAST)
def test_products_in_batches_equal_single_products(backend):
    inputs = tuple(random_inputs(2, 4, 2, 3, groups=2).values())
    generator = torch.Generator().manual_seed(1)
    directions = tuple(torch.randn(4, *x.shape, generator=generator, dtype=x.dtype) for x in inputs)

    def loss(*tensors: Tensor) -> Tensor:
        return selective_scan(*tensors, delta_softplus=True, backend=backend).sin().sum()

    gradient = grad(loss, tuple(range(len(inputs))))
    single = [jvp(gradient, inputs, tuple(v[i] for v in directions))[1] for i in range(4)]
    expected = [torch.stack(parts) for parts in zip(*single)]
    leaves = tuple(x.clone().requires_grad_() for x in inputs)
    outputs = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    batched = {
        "vmap of linearize": vmap(linearize(gradient, *inputs)[1])(*directions),
        "vmap of jvp": vmap(lambda *v: jvp(gradient, inputs, v)[1])(*directions),
        "is_grads_batched": torch.autograd.grad(outputs, leaves, directions, is_grads_batched=True),
    }
    for name, found in batched.items():
        for x, y in zip(found, expected):
            assert_near(x, y, 1e-10, name)


@pytest.mark.parametrize("backend", FAST)
def test_per_example_gradients_under_vmap_equal_a_loop(backend):
    inputs = random_inputs(3, 4, 2, 5)
    shared = {name: inputs.pop(name) for name in ("A", "D", "delta_bias")}

    def loss(own: dict[str, Tensor], shared: dict[str, Tensor]) -> Tensor:
        own = {name: x[None] for name, x in own.items()}
        return selective_scan(**own, **shared, delta_softplus=True, backend=backend).sin().sum()

    found = vmap(grad(loss, argnums=(0, 1)), (0, None))(inputs, shared)
    for i in range(3):
        own = {name: x[i] for name, x in inputs.items()}
        for part, expected in zip(found, grad(loss, argnums=(0, 1))(own, shared)):
            for name, x in expected.items():
                assert_near(part[name][i], x, 1e-10, name)


@pytest.mark.parametrize("backend", FAST)
def test_the_last_state_is_differentiable(backend):
    leaves = tuple(x.requires_grad_() for x in random_inputs(1, 2, 2, 3).values())
    weights = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)

    def gradient(backend: str) -> tuple[Tensor, ...]:
        _, last = selective_scan(*leaves, True, True, backend=backend)
        return torch.autograd.grad(
            (weights * last).sin().sum(), leaves, allow_unused=True, materialize_grads=True
        )

    for name, x, y in zip(NAMES, gradient(backend), gradient("reference")):
        assert_near(x, y, 1e-10, name)


def test_strided_and_expanded_inputs_need_no_copy_by_the_caller():
    inputs = random_inputs(2, 3, 2, 5)
    expected = value_and_derivatives(inputs, delta_softplus=True, backend="reference")["out"]
    strided = {name: torch.stack([x, x + 1], dim=-1)[..., 0] for name, x in inputs.items()}
    assert not strided["u"].is_contiguous()
    assert_near(selective_scan(**strided, delta_softplus=True, backend="cpu"), expected, 1e-12)
    time_first = {
        name: x.transpose(0, -1).contiguous().transpose(0, -1) for name, x in inputs.items()
    }
    assert_near(selective_scan(**time_first, delta_softplus=True, backend="cpu"), expected, 1e-12)
    inputs["u"] = inputs["u"][:1].expand(2, -1, -1)
    expected = selective_scan(**inputs, delta_softplus=True, backend="reference")
    assert_near(selective_scan(**inputs, delta_softplus=True, backend="cpu"), expected, 1e-12)


def test_an_empty_batch_gives_an_empty_output():
    inputs = random_inputs(1, 2, 1, 3)
    empty = {name: x if x.dim() < 3 else x[:0] for name, x in inputs.items()}
    assert selective_scan(**empty, delta_softplus=True).shape == (0, 2, 3)
    assert selective_scan(**empty).shape == (0, 2, 3)


def test_half_precision_is_computed_in_float32_and_returned_in_the_inputs_dtype():
    inputs = random_inputs(2, 3, 2, 9, dtype=torch.float32)
    mixed = {
        name: x if name in ("A", "D", "delta_bias") else x.bfloat16() for name, x in inputs.items()
    }
    out = selective_scan(**mixed, delta_softplus=True)
    widened = {name: x.float() for name, x in mixed.items()}
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, selective_scan(**widened, delta_softplus=True).bfloat16())


def test_not_a_number_stays_in_its_channel_and_after_its_step():
    inputs = random_inputs(2, 20, 2, 40)
    inputs["u"][1, 3, 10] = float("nan")
    out = selective_scan(**inputs, delta_softplus=True, backend="cpu")
    expected = torch.zeros(2, 20, 40, dtype=torch.bool)
    expected[1, 3, 10:] = True
    assert torch.equal(out.isnan(), expected)


@pytest.mark.parametrize("backend", ["reference", "log_depth", "cpu"])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"u": torch.ones(2, 3)}, r"u must have shape \(batch, channels, length >= 1\)"),
        ({"A": torch.ones(3)}, r"A \(channels, states\), got"),
        ({"u": torch.ones(2, 3, 0)}, "length >= 1"),
        ({"A": torch.ones(4, 2)}, r"A must have shape \(3, 2\) to fit u and A, got \(4, 2\)"),
        ({"delta": torch.ones(2, 3, 4)}, r"delta must have shape \(2, 3, 5\)"),
        ({"z": torch.ones(2, 5, 3)}, r"z must have shape \(2, 3, 5\)"),
        ({"D": torch.ones(2)}, r"D must have shape \(3,\)"),
        (
            {"B": torch.ones(2, 2, 2, 5)},
            r"B must have shape \(3, 2\) or \(2, 2, 5\) or \(2, 1, 2, 5\).*got \(2, 2, 2, 5\)",
        ),
        ({"C": torch.ones(2, 3, 5)}, r"C must have shape"),
        (
            {"A": torch.ones(3, 2).cfloat()},
            "A is complex, which is not supported: pass real tensors",
        ),
        (
            {"A": torch.ones(3, 2).double()},
            "torch.float32, torch.float64: convert them to one dtype",
        ),
        ({"u": torch.ones(2, 3, 5).long()}, "torch.float32, torch.int64: convert"),
        ({"D": torch.ones(3, device="meta")}, "must be on one device, got u on cpu, D on meta"),
        (
            {"delta": -torch.ones(2, 3, 5)},
            "is negative, -1, .*pass delta_softplus=True or apply softplus first",
        ),
        ({"delta_bias": -2 * torch.ones(3)}, "is negative, -1, .*pass delta_softplus=True"),
    ],
)
def test_bad_input_is_refused_with_one_sentence(change, message, backend):
    ones = {"u": (2, 3, 5), "delta": (2, 3, 5), "A": (3, 2), "B": (2, 2, 5), "C": (2, 2, 5)}
    inputs = {name: torch.ones(shape) for name, shape in ones.items()} | change
    with pytest.raises(ValueError, match=message) as caught:
        selective_scan(**inputs, backend=backend)
    assert "\n" not in str(caught.value)


def test_fake_tensors_have_the_right_shapes():
    inputs = random_inputs(2, 3, 2, 5)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(x).requires_grad_() for name, x in inputs.items()}
        out = selective_scan(**fake, delta_softplus=True, backend="cpu")
        assert out.shape == (2, 3, 5)
        for x, y in zip(
            torch.autograd.grad(out.sum(), fake.values(), create_graph=True), inputs.values()
        ):
            assert x.shape == y.shape and x.requires_grad
