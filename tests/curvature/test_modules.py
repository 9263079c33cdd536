"""The diagonal blocks of a Hessian: which modules they belong to, and their spectra against those
of the dense Hessian.
"""

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import landscape
from landscape.clip.model import build_model
from landscape.clip.objectives import contrastive_objective
from landscape.curvature import (
    HessianBlocks,
    HessianOperator,
    Objective,
    coordinates_of,
    hessian,
    modules_of,
    per_module_spectra,
    select_parameters,
    spectra_of,
)
from landscape.curvature.hvp.memory import MemoryWatch
from landscape.curvature.hvp.products import RetainedGraph
from landscape.curvature.objective import call_with_parameters
from landscape.errors import MemoryLimitError, ObjectiveError
from landscape.linalg import check_operator, restricted, seeded
from tests.conftest import contrastive_loss
from tests.curvature.test_products import allowing, peaks, rowwise
from tests.helpers.oracles import relative_error
from tests.linalg.test_support import TOKENS, Bag
from tests.linalg.test_support import loss as bag_loss

# A product sums about 1e3 terms in float64.
EXACT = 1e-12


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


class Pairs(nn.Module):
    """A CLIP of two layers whose temperature multiplies the rounding of its similarities by 100."""

    def __init__(self):
        super().__init__()
        self.visual, self.text = nn.Linear(12, 16), nn.Linear(12, 16)
        self.logit_scale = nn.Parameter(torch.tensor(float(np.log(100))))
        with torch.no_grad():
            self.visual.bias.fill_(1)
            self.text.bias.fill_(1)

    def encode_image(self, x):
        return self.visual(x)

    def encode_text(self, x):
        return self.text(x)


@pytest.mark.parametrize("parameters", ["logit_scale", "visual.bias"])
def test_the_bounds_of_small_blocks_hold_the_rounding_of_the_whole_network(parameters):
    """In float32, against float64: a block of one row is symmetric however wrong it is."""
    for seed in range(6):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model, batch = Pairs(), {name: 0.3 * torch.randn(15, 12) for name in ("image", "text")}
        exactly = Pairs().double()
        exactly.load_state_dict(model.state_dict())
        H = hessian(
            exactly,
            contrastive_loss,
            {name: x.double() for name, x in batch.items()},
            parameters=parameters,
        )
        truth = torch.linalg.eigvalsh(H @ torch.eye(H.n, dtype=torch.float64))
        of_block = per_module_spectra(model, contrastive_loss, batch, k=1, modules=[parameters])[
            0
        ].eigenpairs
        whole = hessian(model, contrastive_loss, batch)
        rows = coordinates_of(whole.params, [parameters])
        alone = hessian(model, contrastive_loss, batch, parameters=parameters)
        for pairs in (
            of_block,
            landscape.eigsh(alone, 1),
            landscape.eigsh(restricted(whole, rows), 1),
        ):
            distance = (truth - pairs.values[0].double()).abs().min()
            assert distance <= pairs.residuals[0] * pairs.values[0].abs(), (seed, pairs)


# --- which modules --------------------------------------------------------------------------------

BESIDE = {
    "positional_embedding",
    "text_projection",
    "logit_scale",
    "token_embedding",
    "ln_final",
    "transformer.resblocks.0",
}
VISUAL = {
    "vit_tiny_64": [
        *("class_embedding", "positional_embedding", "proj", "conv1", "ln_pre"),
        *(
            "transformer.resblocks.0",
            "transformer.resblocks.1",
            "transformer.resblocks.2",
            "ln_post",
        ),
    ],
    "vmamba_tiny_64": [
        "trunk.patch_embed",
        *(f"trunk.layers.{i // 2}.{('blocks.0', 'downsample')[i % 2]}" for i in range(7)),
        *("trunk.classifier", "head"),
    ],
    "simba_tiny_64": [
        *(
            f"trunk.{part}{i}{'.0' * (part == 'block')}"
            for i in (1, 2, 3, 4)
            for part in ("patch_embed", "block", "norm")
        ),
        *("trunk.post_network.0", "head"),
    ],
}


@pytest.mark.parametrize("name", VISUAL)
def test_the_modules_of_a_clip_are_the_blocks_of_its_towers_in_order_and_what_lies_beside_them(
    name,
):
    model = build_model(name)
    params = select_parameters(model)
    found = modules_of(model, params)
    assert [module for module in found if module.startswith("visual.")] == [
        f"visual.{module}" for module in VISUAL[name]
    ]
    assert {module for module in found if not module.startswith("visual.")} == BESIDE
    # Every parameter is in exactly one.
    assert sorted(parameter for names in found.values() for parameter in names) == sorted(params)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "vit_tiny_patch16_224",
            [
                "cls_token",
                "pos_embed",
                "patch_embed",
                *(f"blocks.{i}" for i in range(12)),
                "norm",
                "head",
            ],
        ),
        (
            "resnet18",
            ["conv1", "bn1", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)), "fc"],
        ),
    ],
)
def test_timms_networks_are_taken_block_by_block(name, expected):
    model = timm.create_model(name)
    assert list(modules_of(model, select_parameters(model))) == expected


def test_a_network_that_repeats_nothing_is_taken_layer_by_layer():
    model = nn.Sequential(
        nn.Linear(2, 3), nn.Tanh(), nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), nn.Linear(3, 2)
    )
    found = modules_of(model, select_parameters(model))
    assert {module: names[0] for module, names in found.items()} == {
        **{"0": "0.weight", "2.0": "2.0.weight", "2.1": "2.1.weight", "3": "3.weight"}
    }


def test_only_chosen_parameters_count_and_tied_ones_count_once():
    model = build_model("vit_tiny_64")
    params = select_parameters(model, ["visual.transformer.resblocks.1.*", "logit_scale"])
    assert list(modules_of(model, params)) == ["logit_scale", "visual.transformer.resblocks.1"]
    tied = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    tied["b"].weight = tied["a"].weight
    assert modules_of(tied, select_parameters(tied)) == {
        "a": ("a.weight", "a.bias"),
        "b": ("b.bias",),
    }


def test_patterns_choose_modules_and_the_outermost_match_is_taken():
    model = build_model("vit_tiny_64")
    params = select_parameters(model)
    found = modules_of(
        model, params, ["visual.transformer.resblocks.*", "visual.*.resblocks.2.mlp", "logit_scale"]
    )
    assert list(found) == ["logit_scale", *(f"visual.transformer.resblocks.{i}" for i in range(3))]
    assert list(modules_of(model, params, ["visual"])) == ["visual"]
    with pytest.raises(
        ObjectiveError,
        match=r"matches 'resblocks\.1'.*such as positional_embedding, text_projection",
    ):
        modules_of(model, params, ["visual", "resblocks.1"])


# --- their blocks ---------------------------------------------------------------------------------


def test_coordinates_are_those_of_the_flat_vector_and_unknown_names_are_refused(clip_problem):
    params = clip_problem.params
    flat = torch.arange(sum(tensor.numel() for tensor in params.values()))
    pieces = dict(zip(params, flat.split([tensor.numel() for tensor in params.values()])))
    names = ["visual.proj", "logit_scale"]
    assert torch.equal(coordinates_of(params, names), torch.cat([pieces[name] for name in names]))
    with pytest.raises(ValueError, match="'visual.nothing' is not one of"):
        coordinates_of(params, ["visual.nothing"])


def test_the_hessian_of_a_tower_is_the_restriction_of_the_whole(clip_problem, clip_hessian):
    model, loss, batch = clip_problem.model, clip_problem.loss, clip_problem.batch
    whole = hessian(model, loss, batch)
    tower = hessian(model, loss, batch, parameters="visual.*")
    rows = coordinates_of(whole.params, tower.parameter_names)
    V = normal(tower.n, 3)
    dense = clip_hessian[rows][:, rows]
    assert relative_error(tower @ V, dense @ V) < EXACT
    assert relative_error(restricted(whole, rows) @ V, dense @ V) < EXACT


def test_every_block_is_its_rows_and_columns_of_the_dense_hessian(clip_problem, clip_hessian):
    objective, params = clip_problem.objective, clip_problem.params
    modules = modules_of(clip_problem.model, params)
    blocks = HessianBlocks(objective, params, clip_problem.batch, modules)
    assert blocks.loss == pytest.approx(float(objective(params, clip_problem.batch)), rel=1e-14)
    scale = clip_hessian.norm()
    for module, names in modules.items():
        rows = coordinates_of(params, names)
        block = blocks.block(module)
        V = normal(block.n, 2)
        # Relative to the whole, because the block of a bias of keys is zero but for rounding.
        assert (block @ V - clip_hessian[rows][:, rows] @ V).norm() < EXACT * scale, module
        check_operator(block)


@pytest.mark.parametrize("options", [{"hvp": "rebuilt"}, {"hvp": "jvp"}, {"rows": 4}], ids=str)
def test_blocks_without_a_kept_graph_are_the_same_rows_and_columns(
    clip_problem, clip_hessian, options
):
    params, batch = clip_problem.params, clip_problem.batch
    objective, _ = contrastive_objective(clip_problem.model)
    modules = modules_of(clip_problem.model, params)
    blocks = HessianBlocks(objective, params, batch, modules, **options)
    assert blocks.choice.product == options.get(
        "hvp", "rows"
    ) and blocks.choice.rows == options.get("rows")
    for module, names in modules.items():
        rows = coordinates_of(params, names)
        block = blocks.block(module)
        V = normal(block.n, 2)
        assert (block @ V - clip_hessian[rows][:, rows] @ V).norm() < EXACT * clip_hessian.norm(), (
            module
        )
    check_operator(block)


def test_a_batch_whose_graph_does_not_fit_in_memory_keeps_its_blocks():
    objective, params, batch = rowwise()
    # Not those of the model, which hold what a block does not move.
    params = {name: 1.1 * tensor for name, tensor in params.items()}
    names = list(params)
    modules = {"first": tuple(names[:2]), "second": tuple(names[2:7])}
    kept = HessianBlocks(objective, params, batch, modules)
    whole = HessianOperator(objective, params, batch)
    scale = float((whole @ normal(whole.n)).norm())
    needed = peaks(objective, params, batch)
    blocks = HessianBlocks(
        objective, params, batch, modules, max_memory=allowing(0.2 * needed["retained"])
    )
    assert kept.choice.product == "retained" and blocks.choice.product == "rows"
    assert "retained: does not fit" in blocks.choice.reason
    for module in modules:
        expected, block = kept.block(module), blocks.block(module)
        v = normal(block.n)
        # Relative to the whole: what reaches the first layers is small, and the difference of large
        # numbers.
        assert (block @ v - expected @ v).norm() < EXACT * scale
        with MemoryWatch(2**40) as watch:
            blocks.block(module) @ v
        assert watch.peak < 0.2 * needed["retained"]
    # What the first batch has come to is not tried again.
    again = HessianBlocks(objective, params, batch, modules, hvp=blocks.choice)
    assert again.choice == blocks.choice
    with pytest.raises(MemoryLimitError, match="these were tried"):
        HessianBlocks(objective, params, batch, modules, max_memory=100_000)


def test_the_bound_of_a_small_block_holds_the_rounding_of_the_whole_network_in_every_way():
    """A bias of zeros, which no unit in the last place moves, behind a network that multiplies
    rounding.
    """
    model = nn.Sequential(
        *[layer for _ in range(4) for layer in (nn.Linear(8, 8), Sine(gain=8))], nn.Linear(8, 3)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(normal(*parameter.shape, seed=parameter.numel(), dtype=torch.float32))
        model[-1].bias.zero_()
    batch = {"x": normal(20, 8, dtype=torch.float32), "y": torch.arange(20) % 3}

    def objective_of(model):
        return Objective(
            lambda params, batch: call_with_parameters(
                model, params, nn.Module.__call__, batch["x"].to(params["8.bias"])
            ),
            lambda f, batch: F.cross_entropy(f, batch["y"]),
            module=model,
        )

    exactly = copy.deepcopy(model).double()
    truth = HessianBlocks(
        objective_of(exactly), select_parameters(exactly), batch, {"bias": ("8.bias",)}
    ).block("bias")
    v = normal(3)
    for options in (
        {"hvp": "retained"},
        {"hvp": "rebuilt"},
        {"hvp": "jvp"},
        {"rows": 4},
    ):
        # In float32 its products are 5 % off, which the check refuses.
        options = options | {"check": False}
        blocks = HessianBlocks(
            objective_of(model), select_parameters(model), batch, {"bias": ("8.bias",)}, **options
        )
        block = blocks.block("bias")
        error = (block @ v.float()).double() - truth @ v
        bounds = block.product_errors(v.float()).double()
        assert (error.abs() <= bounds).all() and bounds.min() > 0, options
        assert blocks.choice.product == options.get("hvp", "rows")


class Sine(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        return torch.sin(self.gain * x)


def test_small_blocks_take_no_second_graph():
    objective, params, batch = rowwise()
    modules = {"bias": tuple(name for name in params if name.endswith("0.bias"))[:1]}
    assert sum(params[name].numel() for name in modules["bias"]) == 64
    needed = peaks(objective, params, batch)["retained"]
    limit = allowing(1.1 * needed)
    with MemoryWatch(2**40) as watch:
        blocks = HessianBlocks(objective, params, batch, modules, max_memory=limit)
        spectra = spectra_of(blocks, k=3, max_matvecs=10)
    assert blocks.choice.product == "retained" and spectra[0].eigenpairs.residuals.min() > 0
    assert watch.peak < 1.2 * needed


def test_a_graph_that_memory_runs_out_for_is_let_go_of_and_the_blocks_go_on(monkeypatch):
    objective, params, batch = rowwise()
    names = list(params)
    modules = {"first": tuple(names[:2]), "second": tuple(names[2:7])}
    expected = spectra_of(HessianBlocks(objective, params, batch, modules), k=2, max_matvecs=10)
    blocks = HessianBlocks(objective, params, batch, modules)
    assert blocks.choice.product == "retained"
    multiply, made = RetainedGraph._multiply, []

    def run(self, rows, out):
        made.append(1)
        if len(made) > 4:
            raise MemoryError("short")
        multiply(self, rows, out)

    monkeypatch.setattr(RetainedGraph, "_multiply", run)
    found = spectra_of(blocks, k=2, max_matvecs=10)
    # Not tried again: neither by this block nor by the next.
    assert (
        len(made) == 5
        and blocks.choice.product in ("rebuilt", "rows")
        and "ran out of memory" in str(blocks.choice.trials)
    )
    for one, other in zip(expected, found):
        torch.testing.assert_close(
            one.eigenpairs.values, other.eigenpairs.values, rtol=1e-9, atol=1e-12
        )


def test_a_choice_made_without_a_limit_is_made_again_within_one():
    objective, params, batch = rowwise()
    free = HessianOperator(objective, params, batch)
    needed = peaks(objective, params, batch)["retained"]
    with MemoryWatch(2**40) as watch:
        limited = HessianOperator(
            objective, params, batch, hvp=free.choose(), max_memory=allowing(0.3 * needed)
        )
        limited @ normal(limited.n)
    assert (
        free.choice.product == "retained"
        and limited.choice.product == "rows"
        and watch.peak < 0.5 * needed
    )
    # Under the same limit, or with what it took counted, it is taken as it is.
    again = HessianOperator(
        objective, params, batch, hvp=limited.choice, max_memory=allowing(0.3 * needed)
    )
    assert again.choose() == limited.choice


def test_a_block_that_the_loss_does_not_depend_on_is_zero_in_every_way():
    model = Bag(tied=False)
    params, modules = select_parameters(model), {"unused": ("unused",), "table": ("table.weight",)}
    for weight_decay in (0.0, 0.5):
        objective = Objective.from_closure(model, bag_loss, weight_decay=weight_decay)
        for product in ("retained", "rebuilt", "jvp"):
            blocks = HessianBlocks(objective, params, TOKENS, modules, hvp=product)
            torch.testing.assert_close(
                blocks.block("unused") @ normal(2), weight_decay * normal(2), rtol=1e-15, atol=0
            )
            assert blocks.block("unused").support is None
            expected = hessian(
                model, bag_loss, TOKENS, parameters="table.*", weight_decay=weight_decay
            )
            found, v = blocks.block("table"), normal(expected.n)
            assert relative_error(found @ v, expected @ v) < EXACT
            assert (
                (found.support is None) if weight_decay else found.support.equal(expected.support)
            )


def test_krylov_vectors_of_a_block_stay_within_their_memory(clip_problem):
    arguments = (clip_problem.model, contrastive_loss, clip_problem.batch)
    big = ["visual.*resblocks.0", "transformer.resblocks.0"]
    options = {"k": 2, "modules": big, "tol": 1e-6}
    plain = per_module_spectra(*arguments, **options)
    # Nine vectors of the smaller block, in float64: one more than two pairs need.
    room = 9 * 8 * min(one.num_params for one in plain)
    small = per_module_spectra(*arguments, **options, max_basis_memory=room)
    for one, other in zip(plain, small):
        torch.testing.assert_close(
            one.eigenpairs.values, other.eigenpairs.values, rtol=1e-9, atol=0
        )
        assert (
            other.eigenpairs.converged.all()
            and other.eigenpairs.num_matvecs > one.eigenpairs.num_matvecs
        )
    with pytest.raises(
        MemoryLimitError, match="hold 4 vectors of .* but 2 eigenvalues of this block need 8"
    ):
        per_module_spectra(*arguments, **options, max_basis_memory=room // 2)


def test_a_block_states_its_support_and_carries_weight_decay():
    model = Bag(tied=False)
    objective, params = Objective.from_closure(model, bag_loss), select_parameters(model)
    modules = modules_of(model, params)
    assert modules == {
        "unused": ("unused",),
        "table": ("table.weight",),
        "hidden": ("hidden.weight", "hidden.bias"),
    }
    blocks = HessianBlocks(objective, params, TOKENS, modules)
    assert blocks.block("table").support.tolist() == [
        4 * row + column for row in (0, 1, 3, 7) for column in range(4)
    ]
    assert blocks.block("hidden").support is None and blocks.block("unused").support is None
    assert not (blocks.block("unused") @ normal(2, 2)).any()
    heavy = HessianBlocks(
        Objective.from_closure(model, bag_loss, weight_decay=0.5), params, TOKENS, modules
    )
    torch.testing.assert_close(
        heavy.block("unused") @ normal(2), 0.5 * normal(2), rtol=1e-15, atol=0
    )
    assert heavy.block("table").support is None
    check_operator(heavy.block("table"))


def test_spectra_have_both_ends_of_each_block_with_bounds_that_hold(clip_problem, clip_hessian):
    spectra = per_module_spectra(
        clip_problem.model, contrastive_loss, clip_problem.batch, k=3, tol=1e-4
    )
    modules = modules_of(clip_problem.model, clip_problem.params)
    assert [one.module for one in spectra] == list(modules)
    for one in spectra:
        rows = coordinates_of(clip_problem.params, modules[one.module])
        exact = torch.linalg.eigvalsh(clip_hessian[rows][:, rows])
        assert one.num_params == len(rows) and len(one.eigenpairs.values) == min(3, len(rows))
        wanted = exact[exact.abs().argsort(descending=True)][: len(one.eigenpairs.values)]
        bounds = one.eigenpairs.residuals * one.eigenpairs.values.abs() + 1e-12
        assert ((one.eigenpairs.values - wanted).abs() <= bounds).all(), one.module
        for which, truth in (("SA", exact), ("LA", exact.flip(0))):
            values, _ = one.eigenpairs.ritz.end(which, 1)
            assert abs(values[0] - truth[0]) <= max(
                one.eigenpairs.ritz.norms[-1 if which == "LA" else 0], 1e-12
            )
        assert one.eigenpairs.ritz.num_negative <= int((exact < 0).sum())


def test_two_evaluations_serve_the_spectra_of_all_modules(clip_problem):
    evaluations = []

    def loss(model, batch):
        evaluations.append(1)
        return contrastive_loss(model, batch)

    big = ["visual.*resblocks.0", "transformer.resblocks.0"]
    per_module_spectra(clip_problem.model, loss, clip_problem.batch, k=1, modules=big, check=False)
    # Evaluated twice, to see that the loss is not random. No product evaluates it again; the
    # rounding of a small block would.
    assert len(evaluations) == 2


def test_what_is_no_set_of_modules_is_refused(clip_problem):
    objective, params, batch = clip_problem.objective, clip_problem.params, clip_problem.batch
    for modules in ({"empty": ()}, {"foreign": ("visual.proj", "nothing.weight")}):
        with pytest.raises(ValueError, match="must hold some of the chosen parameters"):
            HessianBlocks(objective, params, batch, modules)
    with pytest.raises(ObjectiveError, match="no module"):
        landscape.per_module_spectra(
            clip_problem.model, contrastive_loss, batch, modules=["nothing.*"]
        )
    with pytest.raises(ObjectiveError, match="not finite"):
        block = HessianBlocks(objective, params, batch, {"one": ("visual.proj",)}).block("one")
        block @ torch.full((block.n,), np.inf, dtype=torch.float64)


def test_a_mapping_that_is_no_dict_is_taken_as_a_batch():
    from collections import UserDict

    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    batch = UserDict(x=normal(5, 3), y=torch.arange(5) % 2)
    spectra = per_module_spectra(
        model, lambda model, batch: F.cross_entropy(model(batch["x"]), batch["y"]), batch, k=2
    )
    whole = hessian(model, lambda model, _: F.cross_entropy(model(batch["x"]), batch["y"]), None)
    dense = whole @ torch.eye(whole.n, dtype=torch.float64)
    exact = torch.linalg.eigvalsh(dense[:16, :16])
    assert spectra[0].module == "0"
    torch.testing.assert_close(
        spectra[0].eigenpairs.values,
        exact[exact.abs().argsort(descending=True)][:2],
        rtol=1e-5,
        atol=1e-12,
    )
