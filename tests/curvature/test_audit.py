"""The audit: every known way to lose a second derivative is caught and blamed on its module, and
healthy models pass.
"""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import landscape.towers  # noqa: F401, registers VMamba and Simba with timm
from landscape import audit
from landscape.curvature.audits import WHOLE
from landscape.curvature.audits.differences import PRECISION
from landscape.curvature.audits.judgement import judge_blocks
from landscape.errors import ObjectiveError
from landscape.linalg.operator import seeded
from tests.conftest import contrastive_loss, scramble
from tests.helpers.random_models import random_model
from tests.helpers.wrong_derivatives import SavedSine


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def mean_square(model, batch):
    return model(batch).square().mean()


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch["image"]), batch["label"])


def pictures(side=32, count=3, dtype=torch.float64, classes=4):
    return {
        "image": normal(count, 3, side, side, dtype=dtype),
        "label": torch.arange(count) % classes,
    }


# --- what must be caught --------------------------------------------------------------------------


class OpaqueSine(SavedSine):
    """sin, whose backward hands its inputs to NumPy, as a compiled kernel does: exact, without a
    graph.
    """

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(g.detach().numpy() * x.detach().cos().numpy())


class OnceSine(OpaqueSine):
    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos()


class FrozenSlopeSine(torch.autograd.Function):
    """Differentiable in the incoming gradient, but its saved cosine is a constant: nothing in the
    graph shows it.
    """

    @staticmethod
    def forward(ctx, x):
        ctx.slope = x.detach().cos()
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class WrongSlope(SavedSine):
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos() * 1.01


@torch.library.custom_op("audit_tests::scale_into", mutates_args={"out"})
def scale_into(x: torch.Tensor, factor: float, out: torch.Tensor) -> None:
    out.copy_(x * factor)


class MutatingScale(torch.autograd.Function):
    """As in recent causal_conv1d: forward and backward fill outputs that they were given."""

    @staticmethod
    def forward(ctx, x):
        out = torch.empty_like(x)
        scale_into(x, 1.5, out)
        return out

    @staticmethod
    def backward(ctx, g):
        out = torch.empty_like(g)
        scale_into(g, 1.5, out)
        return out


class Applies(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Checkpointed(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=True)


class Noisy(nn.Module):
    def forward(self, x):
        return x + 1e-3 * torch.randn_like(x)


def into_a_buffer(x):
    out = torch.empty_like(x)
    scale_into(x.detach(), 1.5, out)
    return out


FAULTS = {
    "an opaque function": (lambda: Applies(OpaqueSine.apply), "2.1 (Applies)"),
    "an opaque function under once_differentiable": (
        lambda: Applies(OnceSine.apply),
        "2.1 (Applies)",
    ),
    "a function with a frozen slope": (lambda: Applies(FrozenSlopeSine.apply), "2.1 (Applies)"),
    "a wrong first derivative": (lambda: Applies(WrongSlope.apply), "2.1 (Applies)"),
    "a backward that mutates its outputs": (lambda: Applies(MutatingScale.apply), "2.1 (Applies)"),
    "a kernel that mutates its outputs": (lambda: Applies(into_a_buffer), "2.1 (Applies)"),
    "a detach": (lambda: Applies(lambda x: x * torch.sigmoid(x).detach()), "2.1 (Applies)"),
    "a straight-through estimator": (
        lambda: Applies(lambda x: x + (x.round() - x).detach()),
        "2.1 (Applies)",
    ),
    "a random layer": (Noisy, "2.1 (Noisy)"),
    "reentrant checkpointing": (
        lambda: Checkpointed(nn.Sequential(nn.Linear(6, 6), nn.Tanh())),
        "2.1 (Checkpointed)",
    ),
    "weight_norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), "_WeightNorm)"),
    "weight_norm by hook": (lambda: nn.utils.weight_norm(nn.Linear(6, 6)), "2.1 (Linear)"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_caught_and_blamed_on_its_module(name, dtype):
    make, culprit = FAULTS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        faulty = nn.Sequential(nn.Tanh(), make(), nn.Tanh())
        model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), faulty, nn.Linear(6, 2)).to(dtype).eval()
    report = audit(model, mean_square, normal(9, 4, dtype=dtype))
    assert not report.passed
    assert any(culprit in blamed for blamed in report.faulty_modules), str(report)
    # No healthy module is accused.
    assert all("2.1" in blamed or blamed == WHOLE for blamed in report.faulty_modules), str(report)


def test_faults_in_two_places_are_both_named():
    model = nn.Sequential(
        nn.Linear(4, 6), Applies(OpaqueSine.apply), nn.Linear(6, 6), Applies(FrozenSlopeSine.apply)
    ).double()
    assert {"1 (Applies)", "3 (Applies)"} <= set(
        audit(model, mean_square, normal(9, 4)).faulty_modules
    )


def test_the_error_of_the_unguarded_product_is_reported_though_the_guard_refused():
    model = nn.Sequential(nn.Linear(4, 6), Applies(OpaqueSine.apply), nn.Linear(6, 2)).double()
    rows = {
        row.test: row for row in audit(model, mean_square, normal(9, 4)).rows if row.name == WHOLE
    }
    assert rows["product"].verdict == "failed" and 0.01 < rows["product"].error
    assert rows["symmetry"].verdict == "failed" and 0.01 < rows["symmetry"].error
    assert rows["gradient"].verdict == "passed"


def test_a_kernel_that_is_wrong_in_the_models_own_type_alone_is_caught():
    def wrong_in_float32(x):
        return (OpaqueSine if x.dtype == torch.float32 else Sine).apply(x)

    class Sine(FrozenSlopeSine):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved_tensors[0].cos()

    model = nn.Sequential(nn.Linear(4, 6), Applies(wrong_in_float32), nn.Linear(6, 2))
    report = audit(model, mean_square, normal(9, 4, dtype=torch.float32))
    assert not report.passed and "1 (Applies)" in report.faulty_modules, str(report)


def test_a_detached_part_behind_the_selected_parameters_is_caught():
    model = nn.Sequential(nn.Linear(4, 6), Applies(torch.Tensor.detach), nn.Linear(6, 2)).double()
    report = audit(model, mean_square, normal(9, 4))
    assert not report.passed and "1 (Applies)" in report.faulty_modules, str(report)


# --- what must pass -------------------------------------------------------------------------------


class Spectral(nn.Module):
    """Mixes tokens by complex weights between an FFT and its inverse, as Simba's EinFFT."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(normal(2, width, width, seed=5))

    def forward(self, x):
        spectrum = torch.fft.rfft(x, dim=1, norm="ortho")
        mixed = spectrum @ torch.view_as_complex(self.weight.permute(1, 2, 0).contiguous())
        softened = torch.complex(F.relu(mixed.real), F.relu(mixed.imag))
        return torch.fft.irfft(softened, n=x.shape[1], dim=1, norm="ortho")


class LastOf(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.lstm(x)[0][:, -1]


HEALTHY = {
    "an LSTM": (LastOf, (3, 6, 4)),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten()),
        (3, 3, 8, 8),
    ),
    "an FFT layer": (
        lambda: nn.Sequential(nn.Linear(4, 6), Spectral(6), nn.Linear(6, 2)),
        (3, 7, 4),
    ),
    "ReLUs and a maximum": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(inplace=True),
        ),
        (4, 3, 16, 16),
    ),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (3, 5, 8)),
    "a folded weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), nn.Tanh()),
        (5, 4),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_layers_pass(name, dtype):
    make, shape = HEALTHY[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().to(dtype).eval()
    report = audit(model, mean_square, normal(*shape, dtype=dtype))
    assert report.passed, str(report)


@pytest.mark.parametrize(
    "name, options",
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 2, "embed_dim": 24, "patch_size": 8}),
        ("resnet10t", {"channels": (8, 8, 8, 8), "stem_width": 8}),
        ("vmamba_tiny_64", {"img_size": 32}),
        ("simba_tiny_64", {}),
    ],
)
def test_towers_pass_as_they_are_initialised_and_away_from_it(name, options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=4, **options).eval()
    batch = pictures(options.get("img_size", 64), dtype=torch.float32)
    report = audit(model, cross_entropy, batch)
    assert report.passed and report.dtype == torch.float64, str(report)
    scramble(model, seed=1, scale=0.02)
    assert audit(model, cross_entropy, batch).passed


def test_a_clip_with_its_contrastive_loss_passes(clip_problem):
    assert audit(clip_problem.model, contrastive_loss, clip_problem.batch).passed


def test_no_random_healthy_model_is_accused():
    accused = []
    for seed in range(50):
        model, batch = random_model(seed)
        report = audit(model, mean_square, batch, seed=seed)
        if not report.passed:
            accused.append(f"{seed}\n{report}\n{model}")
    assert not accused, "\n".join(accused)


# --- manners --------------------------------------------------------------------------------------


def test_the_model_the_batch_and_the_random_state_are_left_alone():
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), Applies(OpaqueSine.apply), nn.Linear(6, 2)
    ).eval()
    batch = normal(9, 4, dtype=torch.float32)
    before, kept = copy.deepcopy(model.state_dict()), batch.clone()
    state = torch.get_rng_state()
    assert not audit(model, mean_square, batch).passed
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(batch, kept)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_the_same_seed_gives_the_same_report_and_the_cost_is_modest(mlp_problem):
    reports = [
        audit(mlp_problem.model, mlp_problem.loss, mlp_problem.batch, weight_decay=0.3, seed=3)
        for _ in range(2)
    ]
    assert reports[0] == reports[1]
    assert reports[0].num_gradients <= 8 and reports[0].num_products <= 3


def test_the_report_is_a_table():
    lines = str(
        audit(nn.Sequential(nn.Linear(4, 2)).double(), mean_square, normal(5, 4))
    ).splitlines()
    assert lines[0].split() == ["module", "test", "error", "verdict"]
    assert len(lines) == 6 and all("passed" in line for line in lines[1:])


def test_a_loss_that_is_no_number_and_a_batch_elsewhere_are_refused():
    model = nn.Linear(4, 2)
    with pytest.raises(ObjectiveError, match="must be one real number"):
        audit(model, lambda model, batch: model(batch), torch.zeros(3, 4))
    with pytest.raises(ObjectiveError, match="is on meta"):
        audit(model, mean_square, torch.zeros(3, 4, device="meta"))


def test_a_train_mode_batch_norm_is_a_row_and_not_an_exception():
    report = audit(
        nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).double(), mean_square, normal(5, 4)
    )
    assert report.faulty_modules[0] == "1 (BatchNorm1d)" and not report.passed


def test_differences_that_never_settle_accuse_nobody_and_clear_nobody():
    value = {"w": torch.ones(3, dtype=torch.float64)}
    differences = [{"w": factor * value["w"]} for factor in (2.0, 20.0, -7.0)]
    arguments = {"rounding": {"w": 0.0}, "tolerance": PRECISION[torch.float64].tolerance}
    assert judge_blocks(value, differences, **arguments).verdict == "undecided"
    settled = [{"w": factor * value["w"]} for factor in (2.0, 2.001, -7.0)]
    assert judge_blocks(value, settled, **arguments).verdict == "failed"
    assert judge_blocks(value, [{"w": 5 * value["w"]}, value], **arguments).verdict == "passed"
