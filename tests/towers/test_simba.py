"""The Simba tower against the published description written out once more, with loops over time."""

import math

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from landscape.curvature import HessianOperator, Objective, select_parameters
from landscape.errors import ObjectiveError
from landscape.linalg.operator import seeded
from landscape.towers import Simba
from landscape.towers.simba import Mamba
from tests.conftest import scramble
from tests.helpers.toy_clip import (
    assert_hessian_is_true,
    assert_products_are_true,
    make_toy_clip,
    toy_pictures,
)


def _toy(**options) -> Simba:
    """Two stages on grids of 4 x 4 and 2 x 2, every parameter and statistic off its start,
    float64.
    """
    torch.manual_seed(0)
    sizes = {"stem": 3, "dims": (6, 8), "depths": (1, 2), "mlp_ratios": (2, 1), "num_states": 3}
    tower = Simba(**{**sizes, "num_classes": 0, **options}).double().eval()
    scramble(tower, seed=1, scale=0.3)
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return tower


def _layer_norm(x: Tensor, p: dict[str, Tensor], name: str, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    return centred / scale * p[f"{name}.weight"] + p[f"{name}.bias"]


def _linear(x: Tensor, p: dict[str, Tensor], name: str) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _part(p: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value for name, value in p.items() if name.startswith(prefix)
    }


def _literal_mamba(tokens: Tensor, p: dict[str, Tensor]) -> Tensor:
    """tokens (b, l, c), one step of time after the other; the convolution keeps a window of past
    inputs.
    """
    inner, num_states = p["A_log"].shape
    rank = p["dt_proj.weight"].shape[1]
    filters = p["conv1d.weight"][:, 0]
    results = []
    for sequence in tokens:
        past = torch.zeros(filters.shape[1], inner, dtype=tokens.dtype)
        h = torch.zeros(inner, num_states, dtype=tokens.dtype)
        outputs = []
        for token in sequence:
            projected = p["in_proj.weight"] @ token
            past = torch.cat([past[1:], projected[None, :inner]])
            u = _silu((past.T * filters).sum(1) + p["conv1d.bias"])
            step, B, C = (p["x_proj.weight"] @ u).split([rank, num_states, num_states])
            delta = F.softplus(p["dt_proj.weight"] @ step + p["dt_proj.bias"])[:, None]
            h = torch.exp(-delta * torch.exp(p["A_log"])) * h + delta * B * u[:, None]
            y = (h @ C + p["D"] * u) * _silu(projected[inner:])
            outputs.append(p["out_proj.weight"] @ y)
        results.append(torch.stack(outputs))
    return torch.stack(results)


def _literal_tower(x: Tensor, p: dict[str, Tensor], depths: tuple[int, ...]) -> Tensor:
    for i in (0, 3, 6):
        size = p[f"patch_embed1.conv.{i}.weight"].shape[-1]
        x = F.conv2d(x, p[f"patch_embed1.conv.{i}.weight"], stride=1 if i else 2, padding=size // 2)
        norm = _part(p, f"patch_embed1.conv.{i + 1}.")
        mean, scale = norm["running_mean"], torch.sqrt(norm["running_var"] + 1e-5)
        x = (x.permute(0, 2, 3, 1) - mean) / scale * norm["weight"] + norm["bias"]
        x = x.clamp_min(0).permute(0, 3, 1, 2)
    for i, depth in enumerate(depths, start=1):
        embed = _part(p, f"patch_embed{i}.")
        x = F.conv2d(x, embed["proj.weight"], embed["proj.bias"], stride=2, padding=1)
        count, dim, height, width = x.shape
        tokens = _layer_norm(x.flatten(2).transpose(1, 2), embed, "norm", 1e-5)
        for j in range(depth):
            block = _part(p, f"block{i}.{j}.")
            tokens = tokens + _literal_mamba(
                _layer_norm(tokens, block, "attn.norm", 1e-5), _part(block, "attn.mamba.")
            )
            hidden = _linear(_layer_norm(tokens, block, "norm2", 1e-6), block, "mlp.fc1")
            grid = hidden.transpose(1, 2).reshape(count, -1, height, width)
            filters, bias = block["mlp.dwconv.dwconv.weight"], block["mlp.dwconv.dwconv.bias"]
            hidden = (
                F.conv2d(grid, filters, bias, padding=1, groups=len(filters))
                .flatten(2)
                .transpose(1, 2)
            )
            tokens = tokens + _linear(_gelu(hidden), block, "mlp.fc2")
        if i < len(depths):
            x = (
                _layer_norm(tokens, p, f"norm{i}", 1e-6)
                .transpose(1, 2)
                .reshape(count, dim, height, width)
            )
    token = tokens.mean(1, keepdim=True)
    block = _part(p, "post_network.0.")
    token = token + _literal_mamba(
        _layer_norm(token, block, "attn.norm", 1e-5), _part(block, "attn.mamba.")
    )
    token = token + _linear(
        _gelu(_linear(_layer_norm(token, block, "norm2", 1e-6), block, "mlp.fc1")), block, "mlp.fc2"
    )
    return _layer_norm(token, p, f"norm{len(depths)}", 1e-6)[:, 0]


@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_the_mixing_layer_equals_its_description(length):
    torch.manual_seed(0)
    layer = Mamba(5, num_states=3).double()
    scramble(layer, seed=1, scale=0.3)
    x = torch.randn(2, length, 5, generator=seeded(2), dtype=torch.float64)
    torch.testing.assert_close(
        layer(x), _literal_mamba(x, dict(layer.named_parameters())), rtol=1e-10, atol=1e-10
    )


def test_the_tower_equals_its_description():
    tower, x = _toy(), toy_pictures(side=24)[..., :16]
    torch.testing.assert_close(
        tower(x), _literal_tower(x, tower.state_dict(), (1, 2)), rtol=1e-10, atol=1e-10
    )


def test_a_token_changes_none_before_it():
    torch.manual_seed(0)
    layer = Mamba(4, num_states=2).double()
    scramble(layer, seed=1, scale=0.3)
    x = torch.randn(1, 7, 4, generator=seeded(2), dtype=torch.float64)
    moved = x.clone()
    moved[:, 4] += 1.0
    changed = (layer(x) != layer(moved)).any(-1)[0].tolist()
    assert changed == [False] * 4 + [True] * 3


def test_a_fresh_tower_has_the_published_initialisation():
    torch.manual_seed(0)
    tower = Simba(stem=16, dims=(32, 64), depths=(2, 2), mlp_ratios=(8, 4), num_states=64)
    for name, module in tower.named_modules():
        if isinstance(module, nn.Linear):
            # Several thousand entries: their standard deviation is within 8 % of its value with
            # near certainty.
            if module.weight.numel() > 1000:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.08), name
            assert module.weight.abs().max() < 0.12 and (
                module.bias is None or not module.bias.any()
            )
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.15), (
                name
            )
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.Conv1d):
            assert 0.45 < module.weight.abs().max() <= 0.5 and 0.4 < module.bias.abs().max() <= 0.5
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            assert (module.weight == 1).all() and not module.bias.any()
        elif isinstance(module, Mamba):
            expected = torch.arange(1, 65).float().log().expand(module.A_log.shape)
            torch.testing.assert_close(module.A_log, expected)
            assert (module.D == 1).all()
            # Every step size starts at softplus(0): the published start overwrites Mamba's own.
            assert not module.dt_proj.bias.any()


def test_the_norms_have_the_published_tolerances():
    for name, module in _toy().named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == (
                1e-5 if name.endswith(("attn.norm",)) or name.startswith("patch_embed") else 1e-6
            ), name


def test_drop_path_grows_linearly_over_all_blocks_and_acts_only_in_train_mode():
    for name, rate, depth in (("simba_s", 0.1, 16), ("simba_b", 0.1, 22), ("simba_l", 0.3, 30)):
        with torch.device("meta"):
            tower = timm.create_model(name, num_classes=0)
        rates = [
            block.drop_path.drop_prob for i in range(1, 5) for block in getattr(tower, f"block{i}")
        ]
        assert rates == pytest.approx([rate * i / (depth - 1) for i in range(depth)])
    toy, x = _toy(drop_path_rate=0.9), toy_pictures(8)
    torch.testing.assert_close(toy(x), _toy()(x))
    torch.manual_seed(0)
    assert not torch.allclose(toy.train()(x), _toy().train()(x))


def test_checkpointing_changes_no_value_and_no_derivative_even_with_other_parameters_swapped_in():
    plain, saving = _toy(), _toy()
    assert not saving.grad_checkpointing
    saving.set_grad_checkpointing()
    x = toy_pictures()
    results = []
    for tower in (plain, saving):
        params = {name: (p + 0.1).detach().requires_grad_() for name, p in tower.named_parameters()}
        loss = functional_call(tower, params, (x,)).pow(3).sum()
        gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        products = torch.autograd.grad(
            gradients, list(params.values()), [torch.ones_like(g) for g in gradients]
        )
        results.append([loss, *gradients, *products])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_hessian_vector_products_of_a_toy_clip_are_the_true_ones():
    assert_products_are_true(_toy(num_classes=6))


def test_the_dense_hessian_of_a_toy_clip_is_the_true_one():
    sizes = {"stem": 2, "dims": (4,), "depths": (1,), "mlp_ratios": (2,), "num_states": 2}
    assert_hessian_is_true(_toy(**sizes, num_classes=6))


def test_curvature_in_train_mode_is_refused_because_the_stem_couples_the_rows():
    model = make_toy_clip(_toy(num_classes=6)).train()
    batch = {"image": toy_pictures(2), "text": torch.tensor([[1, 9, 0], [2, 3, 9]])}

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model.encode_image(batch["image"]).pow(2).sum()

    with pytest.raises(ObjectiveError, match=r"patch_embed1\.conv\.1"):
        HessianOperator(
            Objective.from_closure(model, loss), select_parameters(model, ["visual.*"]), batch
        )


def test_every_parameter_receives_a_gradient_that_carries_a_graph():
    tower = _toy()
    gradients = torch.autograd.grad(
        tower(toy_pictures()).pow(3).sum(), list(tower.parameters()), create_graph=True
    )
    for (name, _), gradient in zip(tower.named_parameters(), gradients):
        # The class block sees one token: A and the older three taps of its window act on nothing
        # there.
        assert gradient.requires_grad, name
        assert gradient.abs().max() > 0 or name == "post_network.0.attn.mamba.A_log", name


def test_features_head_and_pooling_follow_timms_conventions():
    tower = timm.create_model(
        "simba_tiny_64", num_classes=7, img_size=64, drop_path_rate=0.1
    ).eval()
    x = torch.randn(2, 3, 64, 64, generator=seeded(0))
    features = tower.forward_features(x)
    assert features.shape == (2, 2, 2, tower.num_features)
    assert tower.forward_head(features, pre_logits=True).shape == (2, tower.num_features)
    assert tower(x).shape == (2, 7) and tower.get_classifier().out_features == 7
    tower.reset_classifier(0)
    assert tower(x).shape == (2, tower.num_features) == (2, tower.head_hidden_size)
    tower.reset_classifier(5, global_pool="")
    assert tower(x).shape == (2, tower.num_features, 2, 2)
    assert tower.default_cfg["input_size"] == (3, 64, 64)
    with pytest.raises(ValueError, match="global_pool must be 'avg' or ''"):
        tower.reset_classifier(0, global_pool="token")


def test_pictures_of_any_side_are_taken():
    tower = _toy().float()
    for size in ((16, 16), (17, 31), (40, 8)):
        assert tower(torch.zeros(1, 3, *size)).shape == (1, 8)


def test_mixed_precision_stays_close_to_single_precision():
    torch.manual_seed(0)
    tower = timm.create_model("simba_tiny_64", num_classes=0).eval()
    x = torch.randn(2, 3, 64, 64, generator=seeded(0))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = tower(x)
    # bfloat16 keeps 8 bits: 0.4 % per operation on features of order one, over a score of layers.
    torch.testing.assert_close(mixed.float(), tower(x), rtol=0.1, atol=0.1)
    half = tower.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16 and half.isfinite().all()
