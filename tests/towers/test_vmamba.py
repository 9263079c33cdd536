"""The VMamba tower against the published description written out once more: loops over directions
and time.
"""

import math

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from landscape.linalg.operator import seeded
from landscape.towers import VMamba
from landscape.towers.vmamba import SS2D, merge_orders, scan_order
from tests.conftest import scramble
from tests.helpers.toy_clip import assert_hessian_is_true, assert_products_are_true, toy_pictures


def _toy(**options) -> VMamba:
    """Two stages on grids of 4 x 4 and 2 x 2, every parameter off its start, float64."""
    torch.manual_seed(0)
    tower = VMamba(
        **{"dims": (6, 8), "depths": (1, 2), "gated": False, "num_classes": 0, **options}
    )
    tower = tower.double().eval()
    scramble(tower, seed=1, scale=0.3)
    return tower


def _layer_norm(x: Tensor, p: dict[str, Tensor], name: str, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    return centred / scale * p[f"{name}.weight"] + p[f"{name}.bias"]


def _literal_depthwise(x: Tensor, filters: Tensor) -> Tensor:
    """x (h, w, d) and filters (d, 1, 3, 3): zero padding, one multiplication at a time."""
    height, width, _ = x.shape
    y = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    if 0 <= i + di < height and 0 <= j + dj < width:
                        y[i, j] += x[i + di, j + dj] * filters[:, 0, di + 1, dj + 1]
    return y


def _literal_directions(u: Tensor, p: dict[str, Tensor], num_states: int) -> Tensor:
    """u (h, w, d): the four scans, each along an explicit list of places, summed."""
    height, width, inner = u.shape
    by_rows = [(i, j) for i in range(height) for j in range(width)]
    by_columns = [(i, j) for j in range(width) for i in range(height)]
    y = torch.zeros_like(u)
    for k, places in enumerate((by_rows, by_columns, by_rows[::-1], by_columns[::-1])):
        rows = slice(k * inner, (k + 1) * inner)
        A, D = -torch.exp(p["A_logs"][rows]), p["Ds"][rows]
        rank = p["dt_projs_weight"].shape[-1]
        h = torch.zeros(inner, num_states, dtype=u.dtype)
        for i, j in places:
            projected = p["x_proj_weight"][k] @ u[i, j]
            delta = F.softplus(p["dt_projs_weight"][k] @ projected[:rank] + p["dt_projs_bias"][k])[
                :, None
            ]
            B, C = projected[rank : rank + num_states], projected[rank + num_states :]
            h = torch.exp(delta * A) * h + delta * B * u[i, j][:, None]
            y[i, j] += h @ C + D * u[i, j]
    return y


def _literal_ss2d(x: Tensor, p: dict[str, Tensor], *, gated: bool, num_states: int) -> Tensor:
    """x (b, h, w, c)."""
    results = []
    for picture in x:
        u = picture @ p["in_proj.weight"].T
        inner = p["Ds"].numel() // 4
        u, z = u[..., :inner], u[..., inner:]
        u = _literal_depthwise(u, p["conv2d.weight"])
        u = u * torch.sigmoid(u)
        y = _layer_norm(_literal_directions(u, p, num_states), p, "out_norm")
        results.append((y * z * torch.sigmoid(z) if gated else y) @ p["out_proj.weight"].T)
    return torch.stack(results)


def _part(p: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value for name, value in p.items() if name.startswith(prefix)
    }


def _literal_tower(
    x: Tensor, p: dict[str, Tensor], depths: tuple[int, ...], *, gated: bool
) -> Tensor:
    def convolution(x: Tensor, name: str) -> Tensor:
        y = F.conv2d(
            x.permute(0, 3, 1, 2), p[f"{name}.weight"], p[f"{name}.bias"], stride=2, padding=1
        )
        return y.permute(0, 2, 3, 1)

    def gelu(x: Tensor) -> Tensor:
        return x / 2 * (1 + torch.erf(x / math.sqrt(2)))

    x = gelu(_layer_norm(convolution(x.permute(0, 2, 3, 1), "patch_embed.0"), p, "patch_embed.2"))
    x = _layer_norm(convolution(x, "patch_embed.5"), p, "patch_embed.7")
    for i, depth in enumerate(depths):
        for j in range(depth):
            block = _part(p, f"layers.{i}.blocks.{j}.")
            x = x + _literal_ss2d(
                _layer_norm(x, block, "norm"), _part(block, "op."), gated=gated, num_states=1
            )
            hidden = gelu(
                _layer_norm(x, block, "norm2") @ block["mlp.fc1.weight"].T + block["mlp.fc1.bias"]
            )
            x = x + hidden @ block["mlp.fc2.weight"].T + block["mlp.fc2.bias"]
        if i + 1 < len(depths):
            x = _layer_norm(
                convolution(x, f"layers.{i}.downsample.1"), p, f"layers.{i}.downsample.3"
            )
    return _layer_norm(x, p, "classifier.norm").mean((1, 2))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 4), (4, 3)])
@pytest.mark.parametrize("gated, num_states", [(False, 1), (True, 1), (False, 3)])
def test_the_mixing_layer_equals_its_description(gated, num_states, size):
    torch.manual_seed(0)
    layer = SS2D(5, gated=gated, num_states=num_states).double()
    scramble(layer, seed=1, scale=0.3)
    x = torch.randn(2, *size, 5, generator=seeded(2), dtype=torch.float64)
    expected = _literal_ss2d(x, dict(layer.named_parameters()), gated=gated, num_states=num_states)
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gated", [False, True])
def test_the_tower_equals_its_description(gated):
    tower, x = _toy(gated=gated), toy_pictures(side=24)
    expected = _literal_tower(x, dict(tower.named_parameters()), (1, 2), gated=gated)
    torch.testing.assert_close(tower(x), expected, rtol=1e-10, atol=1e-10)


def test_merging_the_orders_is_the_transpose_of_reading_in_them():
    generator = seeded(0)
    x = torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(2, 4, 3, 20, generator=generator, dtype=torch.float64)
    read = scan_order(x.unsqueeze(1).expand(-1, 4, -1, -1, -1))
    torch.testing.assert_close(
        (read * y).sum(), (x * merge_orders(y, (4, 5))).sum(), rtol=1e-12, atol=1e-12
    )


def test_each_of_the_four_directions_sees_only_what_it_has_passed():
    """The mixing is causal along every order: with three of the four silenced, the last place read
    changes nothing before.
    """
    torch.manual_seed(0)
    layer = SS2D(3, gated=False).double()
    # Without the 3 x 3 convolution's neighbours, a change can spread only along the scan.
    with torch.no_grad():
        layer.conv2d.weight.mul_(
            torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.float64)
        )
    x = torch.randn(1, 6, 3, 4, generator=seeded(1), dtype=torch.float64)
    last = [(2, 3), (2, 3), (0, 0), (0, 0)]
    for k in range(4):
        weights = torch.zeros(4, 1, 1, dtype=torch.float64)
        weights[k] = 1.0
        silenced = {
            "x_proj_weight": layer.x_proj_weight * weights,
            "Ds": layer.Ds * weights.expand(4, 6, 1).flatten(),
        }
        moved = x.clone()
        moved[:, :, *last[k]] += 1.0
        before, after = (
            functional_call(_Scan(layer), {f"layer.{n}": v for n, v in silenced.items()}, (u,))
            for u in (x, moved)
        )
        changed = (before != after).any(1)[0].nonzero().tolist()
        assert changed == [list(last[k])]


class _Scan(nn.Module):
    def __init__(self, layer: SS2D) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.scan(x)


def test_a_fresh_tower_has_the_published_initialisation():
    torch.manual_seed(0)
    tower = VMamba(dims=(64, 128), depths=(2, 2), gated=True, num_states=2)
    for name, module in tower.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.abs().max() <= 2.0
            # 4096 entries or more: their standard deviation is within 5 % of 0.02 with near
            # certainty.
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any()
        elif isinstance(module, nn.Conv2d):
            bound = (module.in_channels // module.groups * 9) ** -0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound
    for layer in (module for module in tower.modules() if isinstance(module, SS2D)):
        inner, rank = layer.dt_projs_weight.shape[1:]
        for weight, bound in (
            (layer.x_proj_weight, inner**-0.5),
            (layer.dt_projs_weight, rank**-0.5),
        ):
            assert 0.99 * bound < weight.abs().max() <= bound
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        steps = F.softplus(layer.dt_projs_bias)
        assert 0.00099 < steps.min() < 0.0015 and 0.08 < steps.max() < 0.1001
        # log-uniform in 0.001..0.1: the median is 0.01
        assert steps.median().item() == pytest.approx(0.01, rel=0.25)
        torch.testing.assert_close(
            layer.A_logs, torch.tensor([0.0, math.log(2)]).expand(4 * inner, 2)
        )
        assert (layer.Ds == 1).all()


def test_drop_path_grows_linearly_over_all_blocks_and_acts_only_in_train_mode():
    tower = timm.create_model("vmamba_t220", num_classes=0)
    rates = [block.drop_path.drop_prob for stage in tower.layers for block in stage.blocks]
    assert rates == pytest.approx([0.2 * i / 9 for i in range(10)])
    toy, x = _toy(drop_path_rate=0.9), toy_pictures(8)
    torch.testing.assert_close(toy(x), _toy()(x))
    torch.manual_seed(0)
    assert not torch.allclose(toy.train()(x), toy.eval()(x))


def test_checkpointing_changes_no_value_and_no_derivative_even_with_other_parameters_swapped_in():
    plain, saving = _toy(), _toy()
    assert not any(stage.grad_checkpointing for stage in saving.layers)
    saving.set_grad_checkpointing()
    x = toy_pictures()
    results = []
    for tower in (plain, saving):
        params = {name: (p + 0.1).detach().requires_grad_() for name, p in tower.named_parameters()}
        loss = functional_call(tower, params, (x,)).pow(2).sum()
        gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        products = torch.autograd.grad(
            gradients, list(params.values()), [torch.ones_like(g) for g in gradients]
        )
        results.append([loss, *gradients, *products])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gated", [False, True])
def test_hessian_vector_products_of_a_toy_clip_are_the_true_ones(gated):
    assert_products_are_true(_toy(gated=gated, num_classes=6))


def test_the_dense_hessian_of_a_toy_clip_is_the_true_one():
    assert_hessian_is_true(_toy(gated=True, dims=(6,), depths=(1,), num_classes=6))


def test_every_parameter_receives_a_gradient_that_carries_a_graph():
    tower = _toy(gated=True)
    gradients = torch.autograd.grad(
        tower(toy_pictures()).pow(3).sum(), list(tower.parameters()), create_graph=True
    )
    for (name, _), gradient in zip(tower.named_parameters(), gradients):
        assert gradient.requires_grad and gradient.abs().max() > 0, name


def test_features_head_and_pooling_follow_timms_conventions():
    tower = timm.create_model(
        "vmamba_tiny_64", num_classes=7, img_size=64, drop_path_rate=0.1
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
    tower = timm.create_model("vmamba_tiny_64", num_classes=0).eval()
    x = torch.randn(2, 3, 64, 64, generator=seeded(0))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = tower(x)
    # bfloat16 keeps 8 bits: 0.4 % per operation on features of order one, over a score of layers.
    torch.testing.assert_close(mixed.float(), tower(x), rtol=0.1, atol=0.1)
    half = tower.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16 and half.isfinite().all()
