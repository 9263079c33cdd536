"""Losses without a Hessian worth having are refused, by the name of the part that is to blame."""

import copy
import warnings

import pytest
import timm.layers
import torch
from open_clip.transformer import PatchDropout
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from landscape.curvature import HessianOperator, Objective, gradient, hessian, select_parameters
from landscape.curvature.guards import check_twice_differentiable
from landscape.curvature.guards.graph import _REFUSED_NODES
from landscape.errors import ObjectiveError
from landscape.linalg.operator import seeded
from tests.helpers.oracles import difference_product, relative_error

# Truncation of the differences: at most 2e-9 over 30 draws of the weights. A wrong rule is off by
# 1e-2 and more.
DIFFERENCES = 1e-8


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def mean_square(model, batch):
    return model(batch).square().mean()


class GeneralisedMean(nn.Module):
    """Has a `p` that is no probability of dropping."""

    def __init__(self):
        super().__init__()
        self.p = 0.5

    def forward(self, x):
        return x.abs().pow(self.p).mean(-1).pow(1 / self.p)


def mlp(middle=None, *, dtype=torch.float64):
    return nn.Sequential(nn.Linear(3, 4), middle or nn.Tanh(), nn.Linear(4, 2)).to(dtype)


# --- modules --------------------------------------------------------------------------------------

RANDOM_OR_STATEFUL = {
    "batch norm": (nn.BatchNorm1d(4), "batch norm in train mode"),
    "batch norm without running statistics": (
        nn.BatchNorm1d(4, track_running_stats=False),
        "batch norm in train mode",
    ),
    "synchronised batch norm": (nn.SyncBatchNorm(4), "batch norm in train mode"),
    "timm's batch norm": (timm.layers.BatchNormAct2d(4), "batch norm in train mode"),
    "instance norm": (
        nn.InstanceNorm1d(4, track_running_stats=True),
        "instance norm in train mode",
    ),
    "dropout": (nn.Dropout(0.1), r"active dropout \(p=0.1\)"),
    "dropout of channels": (nn.Dropout2d(0.2), r"active dropout \(p=0.2\)"),
    "alpha dropout": (nn.AlphaDropout(0.2), r"active dropout \(p=0.2\)"),
    "attention": (nn.MultiheadAttention(4, 2, dropout=0.3), r"active dropout \(dropout=0.3\)"),
    "recurrent": (nn.LSTM(4, 4, num_layers=2, dropout=0.4), r"active dropout \(dropout=0.4\)"),
    "timm's DropPath": (timm.layers.DropPath(0.1), r"active dropout \(drop_prob=0.1\)"),
    "timm's PatchDropout": (timm.layers.PatchDropout(0.5), r"active dropout \(prob=0.5\)"),
    "timm's DropBlock": (timm.layers.DropBlock2d(0.1), r"active dropout \(drop_prob=0.1\)"),
    "open_clip's PatchDropout": (PatchDropout(0.5), r"active dropout \(prob=0.5\)"),
    "torchvision's StochasticDepth": (StochasticDepth(0.1, "row"), r"active dropout \(p=0.1\)"),
    "RReLU": (nn.RReLU(), "slopes at random"),
    "spectral norm": (
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        "spectral norm in train mode",
    ),
    "spectral norm by hook": (
        nn.utils.spectral_norm(nn.Linear(4, 4)),
        "spectral norm in train mode",
    ),
}


@pytest.mark.parametrize("name", RANDOM_OR_STATEFUL)
def test_a_random_or_stateful_part_is_refused_by_its_dotted_name_until_it_is_in_eval_mode(name):
    part, message = RANDOM_OR_STATEFUL[name]
    model = nn.ModuleDict({"visual": nn.Sequential(nn.Linear(4, 4), copy.deepcopy(part))})
    with pytest.raises(ObjectiveError, match=rf"visual\.1[.\w]* \(.*{message}.*model\.eval\(\)"):
        check_twice_differentiable(model)
    # Its own mode counts, not that of the model around it.
    model.eval()
    check_twice_differentiable(model)
    model.train()
    model["visual"][1].eval()
    check_twice_differentiable(model)


@pytest.mark.parametrize(
    "part",
    [
        nn.Dropout(0.0),
        nn.LayerNorm(4),
        nn.MultiheadAttention(4, 2),
        nn.InstanceNorm1d(4),
        timm.layers.DropPath(0.0),
        GeneralisedMean(),
        timm.create_model("vit_tiny_patch16_224", depth=1),
    ],
    ids=lambda part: type(part).__name__,
)
def test_train_mode_alone_is_no_fault(part):
    check_twice_differentiable(nn.Sequential(part).train())


def test_the_operator_and_the_gradient_check_the_module():
    model, batch = mlp(nn.Dropout(0.5)), normal(5, 3)
    objective, params = Objective.from_closure(model, mean_square), select_parameters(model)
    for function in (HessianOperator, gradient):
        with pytest.raises(ObjectiveError, match=r"^1 \(Dropout\)"):
            function(objective, params, batch)


def test_gradient_checkpointing_is_refused_by_its_switch():
    model = timm.create_model("vit_tiny_patch16_224", depth=1).eval()
    check_twice_differentiable(model)
    model.set_grad_checkpointing(True)
    with pytest.raises(
        ObjectiveError, match=r"\(VisionTransformer\): has gradient checkpointing switched on"
    ):
        check_twice_differentiable(nn.ModuleDict({"visual": model}))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("part", ["the first block", "a later block", "the whole model"])
def test_checkpointing_inside_the_loss_is_refused_wherever_it_is(use_reentrant, part):
    def loss(model, batch):
        if part == "the whole model":
            return checkpoint(model, batch, use_reentrant=use_reentrant).square().mean()
        if part == "the first block":
            return (
                model[2](model[1](checkpoint(model[0], batch, use_reentrant=use_reentrant)))
                .square()
                .mean()
            )
        return (
            model[2](checkpoint(model[1], model[0](batch), use_reentrant=use_reentrant))
            .square()
            .mean()
        )

    with pytest.raises(ObjectiveError, match="(?i)checkpointing"):
        hessian(mlp(), loss, normal(5, 3))


# --- random, constant, infinite and shapeless losses ----------------------------------------------


def test_dropout_that_ignores_eval_mode_is_found_by_evaluating_twice():
    def loss(model, batch):
        return F.dropout(model(batch), 0.2, training=True).square().mean()

    with pytest.raises(ObjectiveError, match=r"The loss is random: .* it gave [\d.]+ and [\d.]+"):
        hessian(mlp().eval(), loss, normal(50, 3))


def test_a_loss_with_a_generator_of_its_own_is_found_to_be_random():
    generator = seeded(0)

    def loss(model, batch):
        return (model(batch) + 1e-6 * torch.randn(5, 2, generator=generator)).square().mean()

    with pytest.raises(ObjectiveError, match="The loss is random"):
        hessian(mlp(), loss, normal(5, 3))


@pytest.mark.parametrize("value, message", [(float("nan"), "nan"), (float("inf"), "inf")])
def test_a_loss_that_is_not_finite_is_refused_with_its_value_and_the_batch(value, message):
    batch = {"image": normal(5, 3), "label": torch.zeros(5)}
    shapes = r"batch\['image'\] \(5, 3\), batch\['label'\] \(5,\)"
    with pytest.raises(ObjectiveError, match=rf"The loss is {message} on the batch {shapes}"):
        hessian(mlp(), lambda model, batch: mean_square(model, batch["image"]) * value, batch)


@pytest.mark.parametrize(
    "loss, got",
    [
        (lambda model, batch: model(batch), r"a tensor of shape \(5, 2\)"),
        (lambda model, batch: model(batch).sum()[None], r"a tensor of shape \(1,\)"),
        (lambda model, batch: {"contrastive_loss": model(batch).sum()}, "a dict"),
        (lambda model, batch: model(batch).sum().item(), "a float"),
        (lambda model, batch: torch.view_as_complex(model(batch)).sum(), "complex128"),
    ],
    ids=["matrix", "one entry", "dict", "float", "complex"],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_a_loss_that_is_not_one_real_number_is_refused(loss, got):
    with pytest.raises(ObjectiveError, match=f"must be one real number.*{got}"):
        hessian(mlp(), loss, normal(5, 3))


@pytest.mark.parametrize(
    "loss",
    [
        lambda model, batch: model(batch).detach().square().mean(),
        lambda model, batch: batch.square().mean(),
        lambda model, batch: model[0](batch).square().mean(),
    ],
    ids=["detached", "without the model", "without the selected part"],
)
def test_a_loss_that_does_not_depend_on_the_parameters_is_refused(loss):
    with pytest.raises(ObjectiveError, match="does not depend on any of the selected parameters"):
        hessian(mlp(), loss, normal(5, 3), parameters="2.*")


def test_a_loss_that_needs_gradients_only_for_a_criterion_of_its_own_is_refused():
    temperature = torch.ones((), dtype=torch.float64, requires_grad=True)
    with pytest.raises(ObjectiveError, match="does not depend on any of the selected parameters"):
        hessian(
            mlp(),
            lambda model, batch: model(batch).detach().square().mean() * temperature,
            normal(5, 3),
        )


def test_a_gradient_that_is_not_finite_is_refused_by_the_parameters_name():
    model = mlp()
    nn.init.zeros_(model[2].weight)
    with pytest.raises(ObjectiveError, match=r"2\.weight: the gradient of the loss is not finite"):
        hessian(
            model,
            lambda model, batch: mean_square(model, batch) + model[2].weight.square().sum().sqrt(),
            normal(5, 3),
        )


def test_a_second_derivative_that_is_not_finite_is_refused_by_the_parameters_name():
    model = mlp()
    nn.init.zeros_(model[2].weight)

    def loss(model, batch):
        return mean_square(model, batch) + model[2].weight.abs().pow(1.5).sum()

    operator = hessian(model, loss, normal(5, 3))
    with pytest.raises(
        ObjectiveError, match=r"2\.weight: a product with the Hessian is not finite"
    ):
        operator @ normal(operator.n)
    with pytest.raises(ObjectiveError, match="A vector with infinite or NaN entries"):
        operator @ torch.full((operator.n,), float("nan"), dtype=torch.float64)


# --- types and places -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64, torch.int64])
def test_parameters_that_are_not_float32_or_float64_are_refused_by_name(dtype):
    objective = Objective(lambda params, batch: params["w"], lambda features, batch: features.sum())
    with pytest.raises(ObjectiveError, match=rf"w: is in {dtype}.*float32 or float64"):
        HessianOperator(objective, {"w": torch.zeros(3, dtype=dtype)}, None)


def test_parameters_of_two_types_are_refused_by_name():
    model = mlp()
    model[2].float()
    with pytest.raises(
        ObjectiveError,
        match=r"2\.weight: is in torch\.float32 on cpu, but 0\.weight is in torch\.float64",
    ):
        hessian(model, mean_square, normal(5, 3))


def test_parameters_with_nan_are_refused_by_name_even_where_the_loss_is_finite():
    model = nn.ModuleDict({"unused": nn.Linear(2, 2), "used": nn.Linear(3, 2)})
    model["unused"].bias.data[1] = float("nan")
    with pytest.raises(ObjectiveError, match=r"unused\.bias: has infinite or NaN entries"):
        hessian(model, lambda model, batch: model["used"](batch).square().mean(), torch.ones(2, 3))


def test_no_parameters_are_refused():
    with pytest.raises(ObjectiveError, match="No parameters were given"):
        HessianOperator(
            Objective(lambda params, batch: params, lambda features, batch: torch.ones(())),
            {},
            None,
        )


def test_parameters_without_a_single_entry_are_refused():
    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.none, self.two = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.ones(2))

    def loss(model, batch):
        return model.two.pow(3).sum() + model.none.sum()

    with pytest.raises(
        ObjectiveError, match=r"The selected parameters \(none\) have 0 entries in all"
    ):
        hessian(Empty(), loss, None, parameters="none")
    # Beside others an empty one is no fault: 6 I for two ones cubed.
    H = hessian(Empty(), loss, None)
    assert torch.equal(H @ torch.ones(2), 6 * torch.ones(2))


def test_a_batch_on_another_device_is_refused_by_its_place_in_the_batch():
    batch = {"image": normal(5, 3), "more": [torch.zeros(2, device="meta")]}
    with pytest.raises(
        ObjectiveError, match=r"batch\['more'\]\[0\]: is on meta, but the parameters are on cpu"
    ):
        hessian(mlp(), lambda model, batch: mean_square(model, batch["image"]), batch)


def test_autocast_around_the_construction_is_refused():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(ObjectiveError, match="autocast is enabled for cpu.*bfloat16"):
            hessian(mlp(dtype=torch.float32), mean_square, normal(5, 3).float())


def test_autocast_inside_the_loss_is_found_in_the_graph():
    def loss(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(batch)
        return output.float().square().mean()

    with pytest.raises(
        ObjectiveError,
        match=r"computes in torch\.bfloat16, but the parameters are in torch\.float32",
    ):
        hessian(mlp(dtype=torch.float32), loss, normal(5, 3).float())


def test_a_float32_island_in_a_float64_model_is_found_by_its_module():
    class Island(nn.Module):
        def forward(self, x):
            return x.float().tanh().double()

    with pytest.raises(ObjectiveError, match=r"^1 \(Island\): \w+ computes in torch\.float32"):
        hessian(mlp(Island()), mean_square, normal(5, 3))


def test_a_loss_with_fewer_bits_than_the_parameters_is_refused_and_one_with_more_is_not():
    batch = normal(5, 3)
    with pytest.raises(
        ObjectiveError,
        match=r"The loss is in torch\.float32, but the parameters are in torch\.float64",
    ):
        hessian(mlp(), lambda model, batch: mean_square(model, batch).float(), batch)
    model = mlp(dtype=torch.float32)
    more, plain = (
        hessian(model, loss, batch.float())
        for loss in (lambda m, b: mean_square(m, b).double(), mean_square)
    )
    v = normal(plain.n).float()
    assert relative_error(more @ v, plain @ v) < 1e-5


# --- operations whose second derivative is missing ------------------------------------------------


class OpaqueCube(torch.autograd.Function):
    """The right gradient by a computation that autograd does not see, as in the selective-scan
    kernels.
    """

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            return gradient * 3 * x * x


class OnceCube(OpaqueCube):
    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 3 * x * x


class HonestCube(OpaqueCube):
    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * 3 * x * x


class HonestDouble(torch.autograd.Function):
    """Linear: its gradient is constant, and detached from the parameters for a good reason."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class Around(nn.Module):
    def __init__(self, function, *, residual):
        super().__init__()
        self.function, self.residual = function, residual

    def forward(self, x):
        return self.function.apply(x) + (x if self.residual else 0)


@pytest.mark.parametrize("function", [OpaqueCube, OnceCube])
@pytest.mark.parametrize("residual", [False, True], ids=["in line", "in a residual branch"])
@pytest.mark.parametrize("place", ["in the middle", "at the end of a linear loss"])
def test_an_opaque_backward_is_refused_by_its_module_though_its_gradients_are_right(
    function, residual, place
):
    model = nn.Sequential(
        nn.Linear(3, 4), Around(function, residual=residual), nn.Linear(4, 1)
    ).double()
    loss = (
        mean_square
        if place == "in the middle"
        else lambda model, batch: model[1](model[0](batch)).sum()
    )
    batch = normal(5, 3)
    with pytest.raises(
        ObjectiveError,
        match=rf"^1 \(Around\): the backward pass of {function.__name__}Backward cannot",
    ):
        hessian(model, loss, batch)
    honest = copy.deepcopy(model)
    honest[1].function = HonestCube
    first = gradient(Objective.from_closure(model, loss), select_parameters(model), batch)
    assert torch.equal(
        first, gradient(Objective.from_closure(honest, loss), select_parameters(honest), batch)
    )


@pytest.mark.parametrize("function", [HonestCube, HonestDouble])
@pytest.mark.parametrize(
    "loss", [mean_square, lambda model, batch: model(batch).sum()], ids=["square", "linear"]
)
def test_a_custom_function_with_a_differentiable_backward_is_right(function, loss):
    model = nn.Sequential(
        nn.Linear(3, 4), Around(function, residual=True), nn.Linear(4, 1)
    ).double()
    objective, params, batch = (
        Objective.from_closure(model, loss),
        select_parameters(model),
        normal(5, 3),
    )
    operator = HessianOperator(objective, params, batch)
    v = F.normalize(normal(operator.n), dim=0)
    assert (
        relative_error(operator @ v, difference_product(objective, params, batch, v)) < DIFFERENCES
    )


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("normalise", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_fused_weight_norm_is_refused(normalise):
    with pytest.raises(
        ObjectiveError, match=r"^2.*weight normalisation, whose second derivative is wrong"
    ):
        hessian(
            nn.Sequential(nn.Linear(3, 4), nn.Tanh(), normalise(nn.Linear(4, 2))).double(),
            mean_square,
            normal(5, 3),
        )


def test_fused_weight_norm_still_needs_to_be_refused(monkeypatch):
    monkeypatch.delitem(_REFUSED_NODES, "WeightNormInterfaceBackward0")
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)).double()
    objective, params, batch = (
        Objective.from_closure(model, mean_square),
        select_parameters(model),
        normal(5, 3),
    )
    operator = HessianOperator(objective, params, batch, check=False)
    v = F.normalize(normal(operator.n), dim=0)
    if relative_error(operator @ v, difference_product(objective, params, batch, v)) < DIFFERENCES:
        pytest.skip(
            f"torch {torch.__version__} differentiates fused weight normalisation rightly: drop "
            "the refusal"
        )


def test_an_operation_without_a_second_derivative_is_refused_at_the_first_product():
    lengths = torch.full((4,), 2)

    def ctc(model, batch):
        return F.ctc_loss(
            model(batch).log_softmax(-1).transpose(0, 1),
            torch.ones(4, 2, dtype=torch.long),
            3 * lengths,
            lengths,
        )

    with pytest.raises(ObjectiveError, match="cannot be differentiated twice.*_ctc_loss_backward"):
        operator = hessian(nn.Linear(3, 5).double(), ctc, normal(4, 6, 3))
        operator @ normal(operator.n)


def test_a_sparse_gradient_is_refused_by_its_module():
    model = nn.ModuleDict({"tokens": nn.Embedding(10, 4, sparse=True)}).double()
    with pytest.raises(
        ObjectiveError, match=r"^tokens \(Embedding\): .*sparse gradient.*sparse=False"
    ):
        hessian(model, lambda model, batch: model["tokens"](batch).pow(4).mean(), torch.arange(5))


def test_parameters_captured_outside_the_model_argument_are_refused_by_name():
    model = mlp()
    captured = list(model.parameters())
    with pytest.raises(
        ObjectiveError,
        match=r"^[02]\.(weight|bias): the loss uses this parameter other than through",
    ):
        hessian(
            model,
            lambda model, batch: (
                mean_square(model, batch) + sum(p.square().sum() for p in captured)
            ),
            normal(5, 3),
        )


def test_captured_parameters_that_are_not_under_study_are_constants():
    model = mlp()
    captured = model[0].weight
    attached, detached = (
        hessian(
            model,
            lambda model, batch: mean_square(model, batch) * weight.square().sum(),
            normal(5, 3),
            parameters="2.*",
        )
        for weight in (captured, captured.detach())
    )
    v = normal(attached.n)
    assert torch.equal(attached @ v, detached @ v)


def test_errors_that_have_nothing_to_do_with_derivatives_pass_unchanged():
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        hessian(mlp(), mean_square, normal(5, 4))


def test_no_refusal_and_no_success_leaves_a_warning_or_a_filter_behind():
    filters = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        operator = hessian(mlp(), mean_square, normal(5, 3))
        operator @ normal(operator.n)
    assert warnings.filters == filters
