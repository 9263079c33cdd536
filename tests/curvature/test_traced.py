"""HVPs by traced graphs: those of the other strategies for many architectures, and never those of a
graph that is out of date.

The reference of the zoo is torch's own double backward on the plain model. The strategies do the
same operations, in another order at most, so 1e-12 of float64 is allowed.
"""

import copy
import dataclasses
import gc
import threading
import types
import weakref
from collections import UserDict

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.curvature import HessianOperator, Objective, hessian, select_parameters
from landscape.curvature.guards.fingerprint import captured_by, contents_of
from landscape.curvature.hvp import traced, traced_graph
from landscape.errors import MemoryLimitError, ObjectiveError
from landscape.linalg import eigsh
from landscape.linalg.operator import seeded
from landscape.towers.simba import Simba
from landscape.towers.vmamba import VMamba
from tests.conftest import contrastive_loss, scramble
from tests.helpers.oracles import dense_hessian, relative_error
from tests.helpers.toy_clip import make_toy_clip

EXACT = 1e-12


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def mean_square(model, batch):
    return model(batch).square().mean()


def perceptron(dtype=torch.float64):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype).eval()
    scramble(model, seed=1, scale=0.5)
    return model


BATCHES = [normal(5, 3, seed=seed) for seed in range(10, 14)]


def plain_product(model, loss, batch, v):
    """H v by double backward on the model itself."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):
        gradients = torch.autograd.grad(
            loss(model, batch), parameters, create_graph=True, allow_unused=True
        )
    pieces = [
        piece.view(p.shape)
        for piece, p in zip(v.split([p.numel() for p in parameters]), parameters)
    ]
    pairs = [(g, piece) for g, piece in zip(gradients, pieces) if g is not None and g.requires_grad]
    if not pairs:
        return torch.zeros_like(v)
    products = torch.autograd.grad(
        [g for g, _ in pairs], parameters, [piece for _, piece in pairs], allow_unused=True
    )
    return torch.cat(
        [
            (torch.zeros_like(p) if h is None else h).reshape(-1)
            for h, p in zip(products, parameters)
        ]
    )


@pytest.fixture
def recordings(monkeypatch):
    """The graphs that are recorded."""
    inner, made = traced.trace, []

    def note(*arguments):
        made.append(None)
        made[-1] = inner(*arguments)
        return made[-1]

    monkeypatch.setattr(traced, "trace", note)
    return made


def assert_right(
    model, loss, batch, expected="traced", *, reason="", seed=0, tolerance=EXACT, **options
):
    """The product is that of the plain model, by the strategy that is expected."""
    H = hessian(model, loss, batch, hvp=options.pop("hvp", "traced"), **options)
    v = normal(H.n, seed=seed).to(H.dtype)
    truth = plain_product(model, loss, batch, v)
    assert (H @ v - truth).norm() <= tolerance * truth.norm()
    assert H.choice.product == expected, H.choice.reason
    if expected != "traced":
        assert (
            reason in H.choice.reason
            and H.choice.trials[0].product == "traced"
            and reason in H.choice.trials[0].failure
        )
    return H


# --- a zoo ----------------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    """A causal transformer of one layer over 40 words."""

    def __init__(self, *, tied):
        super().__init__()
        self.words, self.places = nn.Embedding(40, 8), nn.Parameter(torch.zeros(6, 8))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, 40, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return self.head(self.norms[2](x + self.mlp(self.norms[1](x))))


class LowRank(nn.Module):
    """A frozen linear layer and a low-rank change of it."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down, self.up = (
            nn.Linear(layer.in_features, rank, bias=False),
            nn.Linear(rank, layer.out_features, bias=False),
        )

    def forward(self, x):
        return self.layer(x) + 0.5 * self.up(self.down(x))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.cells(x)[0][:, -1])


class Autoencoder(nn.Module):
    """Its decoder is the transpose of its encoder."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return (x @ self.weight.T).tanh() @ self.weight + self.bias


def next_word(model, tokens):
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def words(seed):
    return torch.randint(0, 40, (3, 6), generator=seeded(seed))


def pairs(seed):
    tokens = [[1, 9, 0], [2, 3, 9], [9, 4, 4], [5, 6, 9]]
    return {
        "image": normal(4, 3, 16, 16, seed=seed),
        "text": torch.tensor(tokens)[torch.randperm(4, generator=seeded(seed))],
    }


def clip_of(tower):
    return make_toy_clip(tower.double().eval())


def pictures(seed):
    return normal(2, 3, 32, 32, seed=seed)


def labelled(model, images):
    return F.cross_entropy(model(images), torch.arange(len(images)))


VIT = {
    "img_size": 16,
    "patch_size": 8,
    "embed_dim": 8,
    "depth": 1,
    "num_heads": 2,
    "mlp_ratio": 1.0,
    "num_classes": 6,
}
ZOO = {
    "ViT": (lambda: clip_of(timm.models.VisionTransformer(**VIT)), contrastive_loss, pairs),
    "VMamba": (
        lambda: clip_of(VMamba(dims=(6,), depths=(1,), gated=False, num_classes=6)),
        contrastive_loss,
        pairs,
    ),
    "Simba": (
        lambda: clip_of(
            Simba(stem=3, dims=(6,), depths=(1,), mlp_ratios=(2,), num_states=3, num_classes=6)
        ),
        contrastive_loss,
        pairs,
    ),
    "ResNet": (
        lambda: timm.models.ResNet(
            timm.models.resnet.BasicBlock,
            (1, 1, 1, 1),
            num_classes=3,
            stem_width=4,
            channels=(4, 4, 4, 6),
        ),
        labelled,
        pictures,
    ),
    "ConvNeXt": (
        lambda: timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 4, 6, 6), num_classes=3),
        labelled,
        pictures,
    ),
    "language model": (lambda: LanguageModel(tied=False), next_word, words),
    "language model, tied": (lambda: LanguageModel(tied=True), next_word, words),
    "GRU": (Recurrent, mean_square, lambda seed: normal(3, 4, 3, seed=seed)),
    "low-rank layers": (
        lambda: nn.Sequential(LowRank(nn.Linear(3, 5)), nn.Tanh(), LowRank(nn.Linear(5, 2))),
        mean_square,
        lambda seed: normal(5, 3, seed=seed),
    ),
    "tied weights": (
        Autoencoder,
        lambda model, x: (model(x) - x).square().mean(),
        lambda seed: normal(5, 3, seed=seed),
    ),
}


def of_the_zoo(name):
    make, loss, batch_of = ZOO[name]
    model = make().double().eval()
    scramble(model, seed=3, scale=0.2)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.3)
            part.running_var.uniform_(0.3, 2)
    return model, loss, batch_of


# Recording takes some milliseconds an operation. Others of the zoo have each kind of operation that
# these have.
LEFT_TO_SLOW_TESTS = ("ConvNeXt", "language model")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in LEFT_TO_SLOW_TESTS)) for name in ZOO],
)
def test_every_strategy_makes_the_products_of_the_plain_model(name, recordings):
    model, loss, batch_of = of_the_zoo(name)
    for product in ("retained", "rebuilt", "jvp"):
        H = hessian(model, loss, batch_of(1), hvp=product, check=False)
        v = normal(H.n)
        assert relative_error(H @ v, plain_product(model, loss, batch_of(1), v)) < EXACT, product
        assert H.choice.product == product, H.choice.reason
    for seed in (1, 2):
        assert_right(model, loss, batch_of(seed), check=False)
    # Another checkpoint.
    scramble(model, seed=4, scale=0.1)
    for seed in (2, 3):
        assert_right(model, loss, batch_of(seed), check=False)
    assert len(recordings) == 1
    if name in ("VMamba", "Simba"):
        # A scan is one operation of the graph, not the steps that its kernel takes.
        names = {
            str(node.target)
            for graph in (recordings[0].primal, recordings[0].product)
            for node in graph.graph.nodes
        }
        assert any("landscape" in name for name in names), sorted(names)


def test_rows_and_a_graph_agree_where_rows_can_be_taken_in_chunks():
    model = perceptron()
    objective = Objective(
        lambda params, x: torch.func.functional_call(model, params, x),
        lambda f, x: (f @ f.T).logsumexp(1).mean(),
        module=model,
    )
    params = select_parameters(model)
    dense = dense_hessian(objective, params, BATCHES[0])
    for product in ("rows", "traced"):
        H = HessianOperator(objective, params, BATCHES[0], hvp=product)
        V = normal(H.n, 3)
        assert relative_error(H @ V, dense @ V) < EXACT
        assert H.choice.product == product


# --- what is an input of the graph ----------------------------------------------------------------


def by_functional_call(model):
    """An objective around the model's own forward pass, whose buffers and frozen parameters the
    graph reads where they lie.
    """
    return Objective(
        lambda params, x: torch.func.functional_call(model, params, x),
        lambda f, x: f.square().mean(),
        module=model,
    )


def with_batch_norm():
    model = (
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
        .double()
        .eval()
    )
    scramble(model, seed=1, scale=0.5)
    return model


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("running_var", torch.linspace(1, 2, 4))
        self.register_buffer("running_mean", torch.linspace(-1, 1, 4))

    def forward(self, x):
        return (x - self.running_mean) * self.running_var.rsqrt()


def scale_in_place(model):
    model[1].running_var.mul_(2)


def replace_buffer(model):
    model[1].running_mean = model[1].running_mean + 0.3


def scale_frozen(model):
    with torch.no_grad():
        model[3].weight.mul_(1.5)


def replace_frozen(model):
    model[3].weight = nn.Parameter(1.5 * model[3].weight.detach(), requires_grad=False)


@pytest.mark.parametrize("change", [scale_in_place, replace_buffer, scale_frozen, replace_frozen])
def test_buffers_and_frozen_parameters_are_inputs(change, recordings):
    model = with_batch_norm()
    model[3].weight.requires_grad_(False)
    for x in BATCHES:
        assert_right(model, mean_square, x)
        change(model)
    assert len(recordings) == 1


@pytest.mark.parametrize("change", [scale_in_place, replace_buffer, scale_frozen, replace_frozen])
def test_an_objective_that_reads_them_by_itself_is_never_out_of_date(change):
    model = nn.Sequential(nn.Linear(3, 4), Normalised(), nn.Tanh(), nn.Linear(4, 2)).double()
    model[3].weight.requires_grad_(False)
    objective = by_functional_call(model)
    for x in BATCHES:
        params = select_parameters(model)
        H = HessianOperator(objective, params, x, hvp="traced")
        v = normal(H.n)
        assert relative_error(H @ v, plain_product(model, mean_square, x, v)) < EXACT
        # In place it reads what is there; a tensor that took the place of another it does not know.
        replaced = change in (replace_buffer, replace_frozen) and x is not BATCHES[0]
        assert H.choice.product == ("retained" if replaced else "traced"), H.choice.reason
        assert replaced == ("traced: its graph gives a loss" in H.choice.reason)
        change(model)


def test_a_batch_of_another_size_has_a_graph_of_its_own(recordings):
    model = perceptron()
    for size in (5, 6, 5, 6):
        assert_right(model, mean_square, normal(size, 3, seed=size))
    assert len(recordings) == 2


class TwoTables(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = (
            nn.Embedding(900, 2),
            nn.Embedding(900, 2),
            nn.Linear(2, 2),
        )

    def forward(self, tokens):
        return self.head(
            self.first(tokens[0]).tanh().mean(1) * self.second(tokens[1]).sin().mean(1)
        )


def test_tables_are_padded_and_a_graph_serves_all_batches_that_its_padding_holds(recordings):
    model = TwoTables().double()
    scramble(model, seed=1, scale=0.5)

    def assert_recorded(first, second, total):
        tokens = torch.arange(400).view(2, 200)
        assert_right(model, mean_square, (17 + tokens % first, tokens % second), check=False)
        assert len(recordings) == total, (first, second)

    assert_recorded(30, 20, 1)
    assert_recorded(64, 64, 1)
    assert_recorded(1, 64, 1)
    assert_recorded(30, 150, 2)
    assert_recorded(150, 20, 3)
    # Those that were recorded before and, in the last, the most of both.
    for sizes in ((30, 150), (150, 20), (150, 150), (3, 64)):
        assert_recorded(*sizes, 3)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x, y: {"x": x, "y": y},
        lambda x, y: (x, [y]),
        lambda x, y: [x, y, 2.5, "text", None, True],
    ],
    ids=["dict", "tuple", "with numbers"],
)
def test_batches_are_any_nest_of_tensors_and_plain_values(wrap, recordings):
    def loss(model, batch):
        x, y, scale = (
            (batch["x"], batch["y"], 1) if isinstance(batch, dict) else (batch[0], batch[1], 1)
        )
        if len(batch) > 2:
            scale = batch[2]
        y = y[0] if isinstance(y, list) else y
        return scale * (model(x) - y).square().mean()

    model = perceptron()
    for seed, x in enumerate(BATCHES):
        assert_right(model, loss, wrap(x, normal(5, 2, seed=seed)))
    assert len(recordings) == 1


def test_a_number_in_the_batch_is_part_of_the_graph(recordings):
    model = perceptron()
    for factor in (2.0, 3.0, 2.0, 2.0000000000000004):
        assert_right(
            model,
            lambda model, batch: batch[1] * mean_square(model, batch[0]),
            (BATCHES[0], factor),
        )
    assert len(recordings) == 3


@dataclasses.dataclass
class Sample:
    x: torch.Tensor


@pytest.mark.parametrize(
    "wrap",
    [Sample, lambda x: UserDict(x=x), lambda x: types.SimpleNamespace(x=x), lambda x: [x.numpy()]],
)
def test_a_batch_that_hides_its_tensors_is_left_to_other_strategies(wrap, recordings):
    def loss(model, batch):
        x = (
            batch.x
            if hasattr(batch, "x")
            else batch["x"]
            if isinstance(batch, UserDict)
            else torch.from_numpy(batch[0])
        )
        return model(x).square().mean()

    model = perceptron()
    for x in BATCHES[:2]:
        assert_right(model, loss, wrap(x), "retained", reason="which may hide tensors")
    assert not recordings


def test_a_tensor_that_is_given_twice_is_two_inputs(recordings):
    model = perceptron()
    for batch in ((BATCHES[0], BATCHES[0]), (BATCHES[0], BATCHES[1]), (BATCHES[2], BATCHES[1])):
        assert_right(
            model, lambda model, batch: (model(batch[0]) * model(batch[1]).tanh()).mean(), batch
        )
    assert len(recordings) == 1


# --- what Python decides by values ----------------------------------------------------------------


class BranchesInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos() if x.sum().item() < 100 else g * x.cos().clone()


def by_item(model, x):
    value = mean_square(model, x)
    return 2 * value if value.item() > 0.1 else value


def by_truth(model, x):
    return mean_square(model, x) if x.sum() > 0 else model(x).pow(4).mean()


def by_a_list(model, x):
    return mean_square(model, x) * max(x.abs().amax(1).tolist())


def by_an_array(model, x):
    return mean_square(model, x) * float(x.numpy().max())


def in_a_backward_pass(model, x):
    return BranchesInBackward.apply(model(x)).square().mean()


@pytest.mark.parametrize("loss", [by_item, by_truth, by_a_list, by_an_array, in_a_backward_pass])
def test_python_that_reads_values_is_not_recorded(loss):
    model = perceptron()
    for x in BATCHES[:3]:
        H = assert_right(model, loss, x, "retained", check=False)
        assert (
            "tracing tensor" in H.choice.reason
            or "reads the values of a tensor in Python" in H.choice.reason
        )


def test_random_numbers_are_not_recorded_even_where_they_do_not_matter():
    model = perceptron()
    for x in BATCHES[:2]:
        assert_right(
            model,
            lambda model, x: mean_square(model, x) + 0 * torch.rand(()),
            x,
            "retained",
            reason="random numbers",
        )
    with pytest.raises(ObjectiveError, match="The loss is random"):
        hessian(
            model,
            lambda model, x: F.dropout(model(x), 0.5, training=True).square().mean(),
            BATCHES[0],
            hvp="traced",
        )


# --- what functions capture -----------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.temperature = nn.Linear(3, 2), 2.0

    def forward(self, x):
        return self.layer(x).tanh() * self.temperature


def test_a_number_of_a_module_is_part_of_the_graph(recordings):
    model = Scaled().double()
    for temperature in (2.0, 3.0, 2.0):
        model.temperature = temperature
        assert_right(model, mean_square, BATCHES[0])
    assert len(recordings) == 2


STRENGTH = 1.0


class Strength:
    value = 1.0


class Holder:
    """Ways of keeping a strength that a loss reads, each with a way of changing it."""

    def __init__(self):
        self.tensor = torch.tensor(1.0, dtype=torch.float64)
        self.inner = types.SimpleNamespace(strength=1.0)
        self.array = torch.ones(3, dtype=torch.float64).numpy()
        self.table = {"strength": [self.tensor]}

    def change_nothing(self):
        pass

    def change_in_place(self):
        self.tensor.mul_(4)

    def change_replaced(self):
        self.table["strength"][0] = 4 * self.tensor

    def change_nested(self):
        self.inner.strength *= 4

    def change_array(self):
        self.array[1] *= 4

    def change_global(self):
        global STRENGTH
        STRENGTH *= 4

    def change_class(self):
        Strength.value *= 4

    def change_method(self):
        self.own = lambda: 4.0

    def own(self):
        return 1.0

    def strength(self):
        def inner():
            return STRENGTH * Strength.value

        return (
            self.table["strength"][0]
            * self.inner.strength
            * float(self.array[1])
            * inner()
            * self.own()
        )


CHANGES = [name for name in vars(Holder) if name.startswith("change_")]


@pytest.mark.parametrize("change", CHANGES)
def test_a_captured_value_that_changes_is_seen_though_the_loss_is_the_same(change):
    """A pull towards the weights as they are: neither the loss nor the gradient knows its strength,
    only the Hessian does.
    """
    model, holder = perceptron(), Holder()
    centre = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}

    def pulled(model, x):
        pull = sum(
            (tensor - centre[name]).square().sum() for name, tensor in model.named_parameters()
        )
        return mean_square(model, x) + holder.strength() * pull

    assert_right(model, pulled, BATCHES[0])
    getattr(holder, change)()
    if change in ("change_nothing", "change_method"):
        # Another function of an object that the loss holds makes another kind of problem, with a
        # graph of its own.
        assert_right(model, pulled, BATCHES[1])
    else:
        assert_right(
            model, pulled, BATCHES[1], "retained", reason="values that its functions capture"
        )


def test_labels_captured_by_the_loss_are_seen_to_change():
    model = perceptron()
    for x, seed in zip(BATCHES, range(4)):
        labels = torch.randint(0, 2, (5,), generator=seeded(seed))
        expected, reason = (
            ("traced", "") if seed == 0 else ("retained", "values that its functions capture")
        )
        assert_right(
            model, lambda model, x: F.cross_entropy(model(x), labels), x, expected, reason=reason
        )


def test_another_loss_of_the_same_model_has_a_graph_of_its_own(recordings):
    model = perceptron()
    for _ in range(2):
        assert_right(model, mean_square, BATCHES[0])
        assert_right(model, lambda model, x: model(x).exp().mean(), BATCHES[0])
    assert len(recordings) == 2


def test_a_captured_tensor_is_read_to_the_bit_and_a_large_one_by_sums_that_feel_its_order():
    small, large = normal(1000), normal(2**20 + 61)

    def function():
        return small, large

    marks = {captured_by([function], None)}
    small[7] = torch.nextafter(small[7], torch.tensor(9.0, dtype=torch.float64))
    marks.add(captured_by([function], None))
    large[[3, 999_999]] = large[[999_999, 3]]
    marks.add(captured_by([function], None))
    assert len(marks) == 3 and captured_by([function], None) in marks


def test_the_models_own_parameters_are_no_captured_values():
    model = with_batch_norm()

    def function(x):
        return model(x)

    own, all_of_it = captured_by([function], model), captured_by([function], None)
    scramble(model, seed=9, scale=1)
    model[1].running_var.mul_(3)
    assert captured_by([function], model) == own and captured_by([function], None) != all_of_it


class Switch:
    """A value that is behind what Python code can look through."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def test_another_path_to_the_same_value_is_seen_by_its_operations():
    model, switch = perceptron(), Switch(False)

    def pulled(model, x):
        value = mean_square(model, x)
        # Zero wherever the weights are.
        return (
            value + sum((p - p.detach()).square().sum() for p in model.parameters())
            if switch.value
            else value
        )

    assert_right(model, pulled, BATCHES[0], check=False)
    switch.value = True
    assert_right(
        model, pulled, BATCHES[0], "retained", reason="the operations of the network", check=False
    )


def test_a_small_loss_is_compared_relative_to_itself():
    """float32 and a loss of 1e-9: beside 1 a factor of two would be rounding."""
    model, weight = perceptron(torch.float32), Switch(1e-9)

    def weighted(model, x):
        return weight.value * mean_square(model, x)

    x = BATCHES[0].float()
    assert_right(model, weighted, x, check=False, tolerance=1e-5)
    weight.value = 2e-9
    assert_right(
        model,
        weighted,
        x,
        "retained",
        reason="its graph gives a loss of",
        check=False,
        tolerance=1e-5,
    )


# --- losses of other kinds ------------------------------------------------------------------------


def added_in_place(model, x):
    z = 2 * model(x)
    z += x[:, :2]
    z *= z.detach().clone().cos()
    z[:, 0].mul_(3)
    return z.square().mean()


def rectified_in_place(model, x):
    return model(x).relu_().square().mean() + model(x).tanh().mean()


def linear(model, x):
    return sum(parameter.sum() for parameter in model.parameters())


def linear_in_one(model, x):
    return model[0](x).tanh().mean() + model[2].bias.sum()


def of_one_layer(model, x):
    return model[0](x).square().mean()


def of_its_own_gradient(model, x):
    value = mean_square(model, x)
    slope = torch.autograd.grad(value, model[0].weight, create_graph=True)[0]
    return value + slope.square().sum()


@pytest.mark.parametrize(
    "loss",
    [added_in_place, rectified_in_place, linear, linear_in_one, of_one_layer, of_its_own_gradient],
)
def test_losses_that_write_in_place_or_have_no_second_derivative_by_some_parameters(
    loss, recordings
):
    model = perceptron()
    for x in BATCHES[:2]:
        assert_right(model, loss, x, check=False)
    assert len(recordings) == 1


def test_a_padding_row_that_a_later_batch_looks_up_is_refused_though_the_graph_is_there():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 3, padding_idx=0)

        def forward(self, tokens):
            return self.table(tokens).tanh().mean(1) @ self.table.weight.T

    model = Tied().double()
    scramble(model, seed=1, scale=1)

    def loss(model, tokens):
        return F.cross_entropy(model(tokens), torch.tensor([1, 2]))

    assert_right(model, loss, torch.tensor([[1, 2], [3, 4]]))
    with pytest.raises(ObjectiveError, match=r"table \(Embedding\): zeroes the gradient of row 0"):
        hessian(model, loss, torch.tensor([[0, 2], [3, 4]]), hvp="traced")


@pytest.mark.parametrize("what", ["batch", "frozen"])
def test_what_is_changed_in_place_after_the_operator_was_built_makes_the_next_product_raise(what):
    model, x = perceptron(), BATCHES[0].clone()
    H = HessianOperator(by_functional_call(model), select_parameters(model, "0.*"), x, hvp="traced")
    H @ normal(H.n)
    assert H.choice.product == "traced"
    with torch.no_grad():
        (x if what == "batch" else model[2].weight).mul_(2)
    with pytest.raises(
        ObjectiveError, match="changed in place after the operator was built. Build it on a copy"
    ):
        H @ normal(H.n)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(mode):
    model = LookUp()
    tokens = torch.tensor([[1, 5], [70, 5]])
    with mode():
        H = hessian(model, mean_square, tokens, hvp="traced")
        v = normal(H.n)
        products = [H @ v for _ in range(2)]
    truth = plain_product(model, mean_square, tokens, v.clone())
    assert (
        all(relative_error(product, truth) < EXACT for product in products)
        and H.choice.product == "traced"
    )


class LookUp(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(80, 3), nn.Linear(3, 2)
        self.double()

    def forward(self, tokens):
        return self.head(self.table(tokens).tanh().mean(1))


# --- a graph that is wrong ------------------------------------------------------------------------


def scale_one_node(graph, name, factor):
    """Multiply what the last operation of some name gives."""
    nodes = [
        node
        for node in graph.graph.nodes
        if node.op == "call_function" and name in str(node.target)
    ]
    with graph.graph.inserting_after(nodes[-1]):
        scaled = graph.graph.call_function(torch.ops.aten.mul.Tensor, (nodes[-1], factor))
    nodes[-1].replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)
    graph.recompile()


@pytest.mark.parametrize(
    "part, name, reason",
    [("product", "mm", "differs from double backward"), ("primal", "mean", "gives a loss")],
)
def test_a_wrong_graph_is_dropped_with_its_reason_and_not_recorded_again(
    monkeypatch, part, name, reason
):
    inner, calls = traced.trace, []

    def wrong(*arguments):
        graph = inner(*arguments)
        calls.append(graph)
        # Relative to the whole product 1e-7 and less.
        scale_one_node(getattr(graph, part), name, 1 + 1e-6)
        return graph

    monkeypatch.setattr(traced, "trace", wrong)
    model = perceptron()
    for x in BATCHES[:2]:
        assert_right(model, mean_square, x, "retained", reason=reason)
    assert len(calls) == 1


def test_a_graph_that_goes_wrong_later_is_found_at_the_next_checkpoint(recordings):
    model = perceptron()
    assert_right(model, mean_square, BATCHES[0])
    scale_one_node(recordings[0].product, "mm", 1 + 1e-6)
    scramble(model, seed=8, scale=0.1)
    assert_right(model, mean_square, BATCHES[1], "retained", reason="differs from double backward")
    assert_right(model, mean_square, BATCHES[2], "retained", reason="differs from double backward")


def test_what_the_recorder_cannot_look_into_is_refused():
    def looped(model, x):
        return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).square().mean()

    with pytest.raises(ObjectiveError, match="gradient checkpointing"):
        hessian(perceptron(), looped, BATCHES[0], hvp="traced")
    graph = torch.fx.Graph()
    graph.output(graph.call_function(abs, (graph.placeholder("x"),)))
    with pytest.raises(traced_graph.CannotTrace, match="it calls <built-in function abs>"):
        traced_graph._check(torch.fx.GraphModule({}, graph))


def test_equal_operations_are_computed_once_but_not_those_that_only_compare_equal():
    def function(x):
        return x.sin() + x.sin(), x * 0.0, x * -0.0, x + 1, x + 1.0

    recorded = traced_graph.make_fx(function)(normal(3))
    expected = recorded(normal(3))
    traced_graph.simplify(recorded)
    names = [str(node.target) for node in recorded.graph.nodes if node.op == "call_function"]
    assert names.count("aten.sin.default") == 1 and names.count("aten.mul.Tensor") == 2
    for value, truth in zip(recorded(normal(3)), expected):
        assert torch.equal(value, truth) and torch.equal(value.signbit(), truth.signbit())


# --- checks, choices, memory ----------------------------------------------------------------------


def test_the_first_product_is_held_against_differences():
    class ConstantSlope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.slope = 1 - x.detach().tanh().square()
            return x.tanh()

        @staticmethod
        def backward(ctx, g):
            return g * ctx.slope

    model = perceptron()
    assert assert_right(model, mean_square, BATCHES[0]).spot_check.verdict == "passed"
    H = hessian(
        model,
        lambda model, x: ConstantSlope.apply(model(x)).square().mean(),
        BATCHES[0],
        hvp="traced",
    )
    with pytest.raises(ObjectiveError, match="held against differences"):
        H @ normal(H.n)


def test_a_choice_may_be_given_to_the_next_operator(recordings):
    model = perceptron()
    first = assert_right(model, mean_square, BATCHES[0])
    second = hessian(model, mean_square, BATCHES[1], hvp=first.choice)
    v = normal(second.n)
    assert relative_error(second @ v, plain_product(model, mean_square, BATCHES[1], v)) < EXACT
    assert second.choice == first.choice and len(recordings) == 1


def test_blocks_of_vectors_and_the_l2_term():
    model = perceptron()
    H = hessian(model, mean_square, BATCHES[0], hvp="traced", weight_decay=0.5)
    dense = dense_hessian(
        Objective.from_closure(model, mean_square, weight_decay=0.5),
        select_parameters(model),
        BATCHES[0],
    )
    V = normal(H.n, 4)
    assert relative_error(H @ V, dense @ V) < EXACT and H.choice.product == "traced"
    assert H.loss == pytest.approx(
        hessian(model, mean_square, BATCHES[0], weight_decay=0.5).loss, rel=1e-15
    )


def test_float32_has_a_graph_of_its_own_near_that_of_float64(recordings):
    model = perceptron()
    truth = assert_right(model, mean_square, BATCHES[0])
    v = normal(truth.n)
    product = truth @ v
    H = assert_right(model.float(), mean_square, BATCHES[0].float(), tolerance=1e-6)
    assert H.dtype == torch.float32 and len(recordings) == 2
    assert relative_error((H @ v.float()).double(), product) < 1e-5


def test_the_number_of_threads_may_change_and_another_thread_may_multiply():
    model = perceptron()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        H = assert_right(model, mean_square, BATCHES[0])
        torch.set_num_threads(2)
        assert_right(model, mean_square, BATCHES[1])
    finally:
        torch.set_num_threads(before)
    v, products = normal(H.n), []
    thread = threading.Thread(target=lambda: products.append(H @ v))
    thread.start()
    thread.join()
    assert torch.equal(products[0], H @ v)


def test_recording_leaves_the_model_and_random_state_as_they_are():
    model = with_batch_norm()
    model[3].weight.requires_grad_(False)
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def facts():
        return [
            (id(tensor), tensor.data_ptr(), tensor._version, tensor.requires_grad)
            for tensor in tensors
        ]

    tensors = [*model.parameters(), *model.buffers()]
    earlier = facts()
    state = torch.get_rng_state()
    assert_right(model, mean_square, BATCHES[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert facts() == earlier and [id(t) for t in tensors] == [
        id(t) for t in (*model.parameters(), *model.buffers())
    ]
    assert bool((model[0].weight.grad == 7).all()) and model[0].bias.grad is None


@pytest.mark.parametrize("loss", [mean_square, by_item, added_in_place])
def test_a_graph_keeps_neither_the_batch_nor_the_model_alive(loss):
    model, x = perceptron(), BATCHES[0].clone()
    operator = hessian(model, loss, x, hvp="traced", check=False)
    operator @ normal(operator.n)
    gc.collect()
    gc.disable()
    try:
        gone = [
            weakref.ref(x),
            weakref.ref(next(iter(operator._engine._problem.leaves.values()))),
        ]
        del operator, x
        assert [ref() for ref in gone] == [None, None]
        (remembered,) = traced._remembered.values()
        assert isinstance(remembered, str) if loss is by_item else len(remembered) == 1
        gone = weakref.ref(model)
        del model
        assert gone() is None
        assert isinstance(remembered, str) or not remembered[0].checkpoints
    finally:
        gc.enable()


def test_a_copied_operator_multiplies_as_the_original():
    H = assert_right(perceptron(), mean_square, BATCHES[0])
    v = normal(H.n)
    assert torch.equal(copy.deepcopy(H) @ v, H @ v)


def test_few_kinds_of_problems_are_remembered(monkeypatch):
    monkeypatch.setattr(traced, "_MAX_REMEMBERED", 3)
    model = perceptron()
    for size in range(1, 6):
        assert_right(model, mean_square, normal(size, 3), check=False)
    assert len(traced._remembered) == traced._MAX_REMEMBERED


def test_models_of_one_kind_share_a_graph_and_each_is_checked(recordings):
    for seed in (1, 2):
        model = perceptron()
        scramble(model, seed=seed, scale=0.5)
        assert_right(model, mean_square, BATCHES[0])
    assert len(recordings) == 1 and len(recordings[0].checkpoints) == 1
    del model


def test_little_memory_is_not_exceeded_by_recording():
    model = (
        nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.GELU())))
        .double()
        .eval()
    )
    objective = by_functional_call(model)
    x, params = normal(200, 64), select_parameters(model)
    truth = HessianOperator(objective, params, x, hvp="retained")
    v = normal(truth.n)
    H = HessianOperator(objective, params, x, hvp="traced", max_memory=14 * 2**20)
    assert relative_error(H @ v, truth @ v) < EXACT
    assert (
        H.choice.product in ("rows", "rebuilt")
        and "traced: does not fit in memory" in H.choice.reason
    )


def test_a_worker_with_less_memory_follows_the_strategy_of_the_head(recordings):
    model = perceptron()
    head = hessian(model, mean_square, BATCHES[0], hvp="traced", check=False)
    choice = dataclasses.replace(head.choose(), reason="pays for 1,200 batches")
    assert choice.peak == 0, "there was plenty of memory, so that none was counted"
    worker = hessian(
        model, mean_square, BATCHES[1], hvp=choice, max_memory=choice.limit, check=False
    )
    v = normal(worker.n)
    assert relative_error(worker @ v, plain_product(model, mean_square, BATCHES[1], v)) < EXACT
    assert (worker.choice.product, worker.choice.reason) == ("traced", "pays for 1,200 batches")


def test_a_strategy_that_fails_leaves_the_limit_of_memory_in_force():
    model = perceptron()
    choice = dataclasses.replace(
        hessian(model, mean_square, BATCHES[0], hvp="traced").choose(), limit=2**40, peak=1
    )
    with pytest.raises(MemoryLimitError):
        operator = hessian(model, by_item, BATCHES[0], hvp=choice, max_memory=2000, check=False)
        operator @ normal(operator.n)


def test_a_subclass_with_products_of_its_own_is_asked_for_them():
    class Doubled(HessianOperator):
        def matmat(self, V):
            return 2 * super().matmat(V)

    # More than 64 entries, as the rounding of smaller matrices is measured on an operator of
    # another class.
    model = nn.Sequential(nn.Embedding(9, 40), nn.Tanh(), nn.Linear(40, 1)).double()
    objective = Objective.from_closure(model, lambda model, x: model(x).square().mean())
    tokens = torch.tensor([1, 4, 4])
    values = [
        eigsh(kind(objective, select_parameters(model), tokens), 2, tol=1e-10).values
        for kind in (HessianOperator, Doubled)
    ]
    assert relative_error(values[1], 2 * values[0]) < 1e-9


def test_a_fingerprint_tells_orders_and_signs_apart():
    tensors = [
        torch.tensor(values, dtype=torch.float64)
        for values in ([1.0, 2.0], [2.0, 1.0], [-1.0, -2.0], [1.0, -2.0])
    ]
    for dtype in (torch.float64, torch.float32):
        assert len({contents_of([tensor.to(dtype)]) for tensor in tensors}) == 4
    assert contents_of([torch.empty(0), torch.empty(2, 0)]) == (0, 0)
