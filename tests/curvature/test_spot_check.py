"""The check of an operator's first product: what it catches, what it lets pass, what it costs, and
what it remembers.
"""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import landscape
from landscape.curvature import HessianOperator, Objective, select_parameters
from landscape.curvature.audits import spot_check
from landscape.curvature.modules import per_module_spectra
from landscape.errors import ObjectiveError
from landscape.linalg import (
    DenseOperator,
    SpectralDensity,
    average,
    power_iteration,
    restricted,
    shifted,
)
from landscape.linalg.operator import seeded
from tests.helpers.random_models import random_model
from tests.helpers.wrong_derivatives import FAULTS, ConstantSlope, faulty

SCAN = "torch's scan"


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def mean_square(model, batch):
    return model(batch).square().mean()


def tanh_network(dtype=torch.float64):
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


# --- what it catches and what not -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, dtype) for name in FAULTS if name != SCAN for dtype in (torch.float32, torch.float64)],
)
def test_wrong_derivatives_are_refused_by_the_first_product(name, dtype):
    for seed in range(3):
        model, loss, batch = faulty(name, seed, dtype)
        H = landscape.hessian(model, loss, batch)
        with pytest.raises(ObjectiveError, match=r"^1 \(.*landscape\.audit.*check=False"):
            landscape.eigsh(H, k=1, seed=seed)


def test_torchs_scan_is_handed_to_the_audit(monkeypatch):
    # What the audit says of it is tested elsewhere: it evaluates it some forty times, each traced
    # anew for a second.
    def audited(problem):
        raise ObjectiveError("handed over")

    monkeypatch.setattr(spot_check, "audited", audited)
    model, loss, batch = faulty(SCAN, 0, torch.float64)
    H = landscape.hessian(model, loss, batch)
    with pytest.raises(ObjectiveError, match="handed over"):
        H @ normal(H.n)


def test_what_is_refused_stays_refused():
    model, loss, batch = faulty("a backward that is off by a factor", 0, torch.float64)
    H = landscape.hessian(model, loss, batch)
    for _ in range(2):
        with pytest.raises(ObjectiveError, match="landscape.audit"):
            H @ normal(H.n)


def test_what_is_refused_is_measured_and_marked_when_the_check_is_turned_off():
    model, loss, batch = faulty("a straight-through estimator", 0, torch.float64)
    pairs = landscape.eigsh(landscape.hessian(model, loss, batch, check=False), k=1)
    assert pairs.checked == "operator not checked: check=False"
    assert "operator not checked" in repr(pairs)


def test_random_healthy_models_pass():
    for seed in range(16):
        model, batch = random_model(seed)
        pairs = landscape.eigsh(landscape.hessian(model, mean_square, batch), k=1, seed=seed)
        assert pairs.checked.startswith("operator checked: "), (seed, pairs.checked)


def test_a_kink_exactly_at_the_parameters_is_left_to_the_audit():
    # A residual branch that is initialised to zero: what comes in is zero in half of the units, and
    # so is the branch.
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.branch = nn.Linear(8, 8)
            nn.init.zeros_(self.branch.weight), nn.init.zeros_(self.branch.bias)

        def forward(self, x):
            return (x.relu() + self.branch(x)).relu()

    model = nn.Sequential(nn.Linear(4, 8), Block(), nn.Linear(8, 2)).double()
    pairs = landscape.eigsh(landscape.hessian(model, mean_square, normal(6, 4)), k=1)
    assert pairs.checked.startswith("operator checked: by the audit a little off the parameters")
    # What several operators say is parted by semicolons.
    assert ";" not in pairs.checked


def test_a_perfect_fit_is_undecided_and_measured():
    model, x = nn.Linear(20, 3).double(), normal(64, 20)
    with torch.no_grad():
        model.weight.mul_(300)
        top = model(x).topk(2).values
        x = x[top[:, 0] - top[:, 1] > 40]
        batch = x, model(x).argmax(1)
    pairs = landscape.eigsh(
        landscape.hessian(
            model, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), batch
        ),
        k=1,
    )
    assert pairs.checked == "operator check undecided: gradient and Hessian are zero to rounding"


# --- what it costs and remembers ------------------------------------------------------------------


class Counted:
    """A loss that counts how often it is evaluated."""

    def __init__(self, value=mean_square):
        self.value = value
        # A number would count as a setting of the loss.
        self.calls: list[object] = []

    @property
    def count(self):
        return len(self.calls)

    def __call__(self, model, batch):
        self.calls.append(object())
        return self.value(model, batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_it_costs_two_gradients_and_two_losses(dtype):
    loss = Counted()
    H = landscape.hessian(tanh_network(dtype), loss, normal(5, 4, dtype=dtype))
    built = loss.count
    for seed in range(2):
        H @ normal(H.n, seed=seed, dtype=dtype)
    assert loss.count == built + 4


def spent(model, loss, batch):
    """Evaluations that a first product causes."""
    counted = Counted(loss)
    # The counter is another object each time; what it counts for is the same.
    H = landscape.hessian(model, lambda model, batch: counted(model, batch), batch)
    before = counted.count
    H @ normal(H.n, seed=5)
    return counted.count - before


def test_the_same_model_loss_and_structure_is_checked_once():
    model = tanh_network()
    assert [spent(model, mean_square, normal(rows, 4, seed=rows)) for rows in (5, 7, 9)] == [
        4,
        0,
        0,
    ]
    assert spent(tanh_network(), mean_square, normal(5, 4)) == 4
    H = landscape.hessian(model, mean_square, normal(5, 4))
    assert landscape.eigsh(H, k=1).checked.endswith("of central differences")
    H = landscape.hessian(model, mean_square, normal(5, 4))
    assert landscape.eigsh(H, k=1).checked.endswith("of central differences on an earlier batch")


CONFIG = {"power": 2}


def power_of_config(model, batch):
    return model(batch).abs().pow(CONFIG["power"]).mean()


def powered(power, model, batch):
    return model(batch).abs().pow(power).mean()


class Powered:
    def __init__(self, power):
        self.power = power

    def __call__(self, model, batch):
        return model(batch).abs().pow(self.power).mean()

    def method(self, model, batch):
        return self(model, batch)


CHANGES = {
    "another loss": lambda model: lambda model, batch: model(batch).abs().pow(3).mean(),
    "a partial with another argument": lambda model: partial(powered, 3),
    "another callable object": lambda model: Powered(3),
    "a method of another object": lambda model: Powered(3).method,
    "a module that was exchanged": lambda model: model.__setitem__(1, nn.GELU()),
    "an attribute of a module": lambda model: setattr(model[1], "bits", 2),
    "weights that moved": lambda model: model[0].weight.data.mul_(3),
    "a frozen weight that moved": lambda model: model[2].bias.data.add_(1),
    "a buffer that moved": lambda model: model[1].gain.add_(1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_may_change_a_derivative_is_checked_again(change):
    model = tanh_network()
    model[1].register_buffer("gain", torch.zeros(2).double())
    model[2].bias.requires_grad_(False)
    before = {"another loss": mean_square, "a partial with another argument": partial(powered, 2)}
    before |= {
        "another callable object": Powered(2),
        "a method of another object": Powered(2).method,
    }
    loss = before.get(change, mean_square)
    assert spent(model, loss, normal(5, 4)) == 4
    assert spent(model, loss, normal(5, 4)) == 0
    changed = CHANGES[change](model)
    assert spent(model, changed if change in before else loss, normal(5, 4)) == 4


def test_a_setting_that_the_loss_reads_and_another_structure_of_the_batch_are_checked_again(
    monkeypatch,
):
    model = tanh_network()
    assert [spent(model, power_of_config, normal(5, 4)) for _ in range(2)] == [4, 0]
    monkeypatch.setitem(CONFIG, "power", 3)
    assert spent(model, power_of_config, normal(5, 4)) == 4
    assert spent(model, power_of_config, normal(2, 5, 4)) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_factor_of_the_whole_gradient_is_caught_though_its_parts_cancel_along_a_vector(dtype):
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return 1.1 * g

    for seed in range(12):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(20, 50), nn.Tanh(), nn.Linear(50, 3)).to(dtype)
        batch = normal(64, 20, seed=seed, dtype=dtype), torch.arange(64) % 3
        H = landscape.hessian(model, lambda m, b: Half.apply(F.cross_entropy(m(b[0]), b[1])), batch)
        with pytest.raises(ObjectiveError, match="landscape.audit"):
            H @ normal(H.n, seed=seed, dtype=dtype)


def test_a_gradient_that_rounding_hides_is_said_to_be_hidden():
    H = landscape.hessian(
        tanh_network(), lambda model, batch: mean_square(model, batch) + 1e9, normal(5, 4)
    )
    assert "the gradient hidden by the rounding of the loss" in landscape.eigsh(H, k=1).checked


def test_float32_with_constants_that_the_loss_captured_goes_to_float64():
    # ReLUs, of which differences in float32 tell nothing, and class weights that do not follow the
    # model to float64.
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]))
    x, label = normal(16, 6, dtype=torch.float32), torch.arange(16) % 3
    for seed in range(6):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = nn.Sequential(
                nn.Linear(6, 32),
                nn.ReLU(),
                nn.Linear(32, 32),
                nn.RMSNorm(32),
                nn.ReLU(),
                nn.Linear(32, 3),
            )
        with torch.no_grad():
            model[2].weight.mul_(3e-3)
            model[2].bias.zero_()
        pairs = landscape.eigsh(
            landscape.hessian(model, lambda model, batch: criterion(model(x), label), None), k=1
        )
        assert pairs.checked.startswith("operator checked: "), pairs.checked


def test_unit_vectors_say_too_little_and_a_block_of_them_enough():
    model, loss, batch = faulty("an opaque function that drops terms", 1, torch.float64)
    for vectors in (
        torch.eye(146, dtype=torch.float64)[:, :1],
        torch.eye(146, dtype=torch.float64),
    ):
        H = landscape.hessian(model, loss, batch)
        assert H.n == 146
        with pytest.raises(ObjectiveError, match="landscape.audit"):
            H @ vectors
    healthy = landscape.hessian(tanh_network(), mean_square, normal(5, 4))
    healthy @ torch.zeros(healthy.n, dtype=torch.float64)
    assert healthy.checked == "", "a product with zero tells nothing"
    healthy @ torch.eye(healthy.n, dtype=torch.float64)[:, 3]
    assert healthy.checked.startswith("operator checked")


# --- every path -----------------------------------------------------------------------------------


@pytest.mark.parametrize("product", ["retained", "rebuilt", "jvp"])
def test_every_way_of_multiplying_is_checked(product):
    H = landscape.hessian(tanh_network(), mean_square, normal(5, 4), hvp=product)
    assert landscape.eigsh(H, k=1).checked.startswith("operator checked: product within ")


def rowwise_objective(model):
    def forward(params, batch):
        return torch.func.functional_call(model, params, (batch,))

    return Objective(forward, lambda features, batch: features.square().mean(), module=model)


def test_row_chunks_are_checked_chunk_by_chunk():
    model = tanh_network()
    H = HessianOperator(rowwise_objective(model), select_parameters(model), normal(8, 4), rows=3)
    assert landscape.eigsh(H, k=1).checked.startswith("operator checked: product within ")
    broken = nn.Sequential(nn.Linear(4, 6), ConstantSlope(), nn.Linear(6, 3)).double()
    H = HessianOperator(rowwise_objective(broken), select_parameters(broken), normal(8, 4), rows=3)
    with pytest.raises(ObjectiveError, match="product failed"):
        landscape.eigsh(H, k=1)


def test_batches_are_checked_and_those_of_one_structure_once():
    loss = Counted()
    H = landscape.hessian_of_batches(
        tanh_network(), loss, [normal(5, 4, seed=seed) for seed in range(3)]
    )
    before = loss.count
    for seed in range(2):
        H @ normal(H.n, seed=seed)
    # Graphs are rebuilt for every product; the check takes a gradient of its own beside the two.
    assert loss.count - before == 2 * 3 + 5
    assert H.checked.startswith("operator checked: product within ")
    model, loss, batch = faulty("an opaque function that drops terms", 0, torch.float64)
    with pytest.raises(ObjectiveError, match="^batch 0 of 2: 1 .*landscape.audit"):
        landscape.eigsh(landscape.hessian_of_batches(model, loss, [batch, batch]), k=1)


def test_blocks_of_modules_are_checked_as_a_whole():
    (first, *_) = per_module_spectra(tanh_network(), mean_square, normal(5, 4), k=1)
    assert first.eigenpairs.checked.startswith("operator checked: product within ")
    model, loss, batch = faulty("an opaque function that drops terms", 0, torch.float64)
    with pytest.raises(ObjectiveError, match="landscape.audit"):
        per_module_spectra(model, loss, batch, k=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_gauss_newton_products_are_held_against_differences_of_the_outputs(dtype):
    def outputs(model, batch):
        return model(batch)

    def squared(z, batch):
        return z.square().mean()

    G = landscape.gauss_newton(tanh_network(dtype), outputs, squared, normal(5, 4, dtype=dtype))
    assert landscape.eigsh(G, k=1).checked.startswith("operator checked: curvature within ")
    for name in ("a straight-through estimator", "a backward that is off by a factor"):
        model, _, batch = faulty(name, 0, dtype)
        with pytest.raises(ObjectiveError, match="landscape.audit.*check=False"):
            landscape.eigsh(landscape.gauss_newton(model, outputs, squared, batch), k=1)
        unchecked = landscape.gauss_newton(model, outputs, squared, batch, check=False)
        assert "not checked" in landscape.eigsh(unchecked, k=1).checked


def test_combinations_say_what_their_parts_say():
    H = landscape.hessian(tanh_network(), mean_square, normal(5, 4))
    combined = average([shifted(H, 0.5), 2 * H])
    said = landscape.eigsh(combined, k=1).checked
    assert said.startswith("operator checked") and ";" not in said
    assert landscape.eigsh(restricted(H, torch.arange(10)), k=1).checked == said
    assert power_iteration(H, 1).checked == said
    assert landscape.eigsh(DenseOperator(torch.eye(3, dtype=torch.float64)), k=1).checked == ""


def test_a_loss_with_an_embedding_keeps_to_its_support():
    model = nn.Sequential(nn.Embedding(30, 4), nn.Flatten(), nn.Linear(8, 3)).double()
    pairs = landscape.eigsh(
        landscape.hessian(model, mean_square, torch.tensor([[1, 2], [3, 4]])), k=1
    )
    assert pairs.checked.startswith("operator checked: product within ")


def test_the_random_state_and_the_model_are_left_alone():
    model, before = tanh_network(), torch.get_rng_state()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    H = landscape.hessian(model, mean_square, normal(5, 4))
    landscape.eigsh(H, k=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_density_says_what_its_operators_say():
    H = landscape.hessian(tanh_network(), mean_square, normal(5, 4))
    found = landscape.density(H, num_probes=2, num_matvecs=8)
    assert found.checked == H.checked and H.checked in repr(found)
    pooled = SpectralDensity.pooled([found, found])
    assert (
        pooled.checked == H.checked
        and [one.checked for one in pooled.by_operator()] == [H.checked] * 2
    )
