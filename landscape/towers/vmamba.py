"""VMamba: an image encoder that scans the grid of patches in four directions.

Follows Liu et al. 2024 (arXiv 2401.10166) in the three sizes that CLIP-Mamba (arXiv 2404.19394)
trained; names and shapes of the state dict are those of its published checkpoints, with
`num_classes=0`.

Shapes: b = pictures, c = channels of a stage, d = channels of its scan, h, w = grid of patches, l =
h w tokens, r = rank of the step-size projection, n = states per channel.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.towers.convolution import DepthwiseConv2d
from landscape.towers.state_space import checkpointed, initial_A_log, state_space


class Permute(nn.Module):
    """A module that reorders the axes.

    It is a module because the published state dicts number it among their modules.
    """

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


def scan_order(x: Float[Tensor, "b 4 c h w"]) -> Float[Tensor, "b 4 c l"]:
    """Read each of four arrays in its own order.

    The orders are by rows, by columns, and each of the two from its end.
    """
    rows, columns, rows_back, columns_back = x.unbind(1)
    forth = torch.stack([rows.flatten(2), columns.transpose(2, 3).flatten(2)], 1)
    back = torch.stack([rows_back.flatten(2), columns_back.transpose(2, 3).flatten(2)], 1)
    return torch.cat([forth, back.flip(-1)], 1)


def merge_orders(y: Float[Tensor, "b 4 d l"], size: tuple[int, int]) -> Float[Tensor, "b d h w"]:
    """Add the four sequences, each put back on the grid.

    As a linear map it is the transpose of `scan_order`.
    """
    height, width = size
    both = y[:, :2] + y[:, 2:].flip(-1)
    rows, columns = both.unbind(1)
    return rows.unflatten(-1, (height, width)) + columns.unflatten(-1, (width, height)).transpose(
        2, 3
    )


class SS2D(nn.Module):
    """Two-dimensional selective scan.

    Args:
        dim: Channels c of the stage.
        gated: Multiply the result by silu(z), z a second half of the input projection (T220 does; S
            and B do not).
        num_states: States n per channel; 1 in all published sizes.
        expand: d / c; 2 in all published sizes.
    """

    def __init__(self, dim: int, *, gated: bool, num_states: int = 1, expand: float = 2.0) -> None:
        super().__init__()
        inner, rank = int(expand * dim), math.ceil(dim / 16)
        self.gated = gated
        self.sizes = (rank, num_states, num_states)
        self.x_proj_weight = nn.Parameter(torch.empty(4, sum(self.sizes), inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(4, inner, rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(4, inner))
        self.A_logs = nn.Parameter(initial_A_log(4 * inner, num_states))
        self.Ds = nn.Parameter(torch.ones(4 * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.in_proj = nn.Linear(dim, inner * (2 if gated else 1), bias=False)
        self.conv2d = DepthwiseConv2d(inner, 3, bias=False)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self._initialise_projections()

    @torch.no_grad()
    def _initialise_projections(self) -> None:
        """Initialise the projections; step sizes are log-uniform in 0.001..0.1.

        Step sizes are softplus(bias), at least 1e-4 (Gu & Dao 2023, arXiv 2312.00752).
        """
        rank, inner = self.sizes[0], self.Ds.numel() // 4
        self.x_proj_weight.uniform_(-(inner**-0.5), inner**-0.5)
        self.dt_projs_weight.uniform_(-(rank**-0.5), rank**-0.5)
        step = (
            torch.empty_like(self.dt_projs_bias)
            .uniform_(math.log(0.001), math.log(0.1))
            .exp()
            .clamp_min(1e-4)
        )
        # The inverse of softplus: bias = log(e^step - 1) = step + log(1 - e^-step).
        self.dt_projs_bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        x = self.in_proj(x)
        if self.gated:
            x, z = x.chunk(2, dim=-1)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2)))
        y = self.scan(x).permute(0, 2, 3, 1)
        y = self.out_norm(y.to(self.out_norm.weight.dtype))
        return self.out_proj(y * F.silu(z) if self.gated else y)

    def scan(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Scan the grid in four directions and add the results.

        Each direction has its own parameters.
        """
        size = (x.shape[2], x.shape[3])
        # Project before reordering: a single matrix product for four directions, and few channels
        # to move.
        projected = torch.matmul(self.x_proj_weight.flatten(0, 1), x.flatten(2))
        parts = scan_order(projected.unflatten(1, (4, -1)).unflatten(-1, size))
        steps, B, C = parts.split(self.sizes, dim=2)
        u = scan_order(x.unsqueeze(1).expand(-1, 4, -1, -1, -1))
        delta = torch.matmul(self.dt_projs_weight, steps)
        y = state_space(
            u.flatten(1, 2),
            delta.flatten(1, 2),
            self.A_logs,
            B,
            C,
            self.Ds,
            delta_bias=self.dt_projs_bias.flatten(),
        )
        return merge_orders(y.unflatten(1, (4, -1)), size)


class VSSBlock(nn.Module):
    """A block: x + SS2D(LN x), then x + MLP(LN x), each branch under stochastic depth."""

    def __init__(self, dim: int, *, gated: bool, num_states: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.op = SS2D(dim, gated=gated, num_states=num_states)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        x = x + self.drop_path(self.op(self.norm(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class VSSStage(nn.Module):
    """Blocks on one grid, then a convolution to the next, coarser grid.

    The last stage has no such convolution.
    """

    grad_checkpointing: bool

    def __init__(self, blocks: Sequence[VSSBlock], *, dim: int, next_dim: int | None) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.Sequential(*blocks)
        self.downsample: nn.Module = nn.Identity()
        if next_dim is not None:
            convolution = nn.Conv2d(dim, next_dim, 3, stride=2, padding=1)
            self.downsample = nn.Sequential(
                Permute(0, 3, 1, 2), convolution, Permute(0, 2, 3, 1), nn.LayerNorm(next_dim)
            )

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b u v e"]:
        for block in self.blocks:
            x = (
                checkpointed(block, x)
                if self.grad_checkpointing and torch.is_grad_enabled()
                else block(x)
            )
        return self.downsample(x)


class Classifier(nn.Module):
    """LayerNorm, mean over the grid, and a linear head.

    With `num_classes=0` the result is the normalised mean itself.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()


class VMamba(nn.Module):
    """The VMamba image encoder.

    Args:
        dims: Channels of the stages; the grid of stage i has 1 / (4 * 2**i) of the picture's side.
        depths: Numbers of blocks of the stages.
        gated: See `SS2D`.
        num_states: See `SS2D`.
        img_size: Accepted, as timm's callers pass it, and not needed: the tower takes any picture
            size.
        in_chans: Channels of a picture.
        num_classes: Width of the head; 0 gives the features.
        global_pool: "avg", or "" for the map (b, c, h, w) of the last stage.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth of the last block; linear from 0 over all blocks.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        gated: bool,
        num_states: int = 1,
        img_size: Any = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = dims[-1]
        self.drop_rate = drop_rate
        self._set_global_pool(global_pool)
        self.patch_embed = _patch_embed(in_chans, dims[0])
        last = max(sum(depths) - 1, 1)
        rates = iter([drop_path_rate * i / last for i in range(sum(depths))])
        stages = []
        for i, (dim, depth) in enumerate(zip(dims, depths)):
            blocks = [
                VSSBlock(dim, gated=gated, num_states=num_states, drop_path=next(rates))
                for _ in range(depth)
            ]
            stages.append(
                VSSStage(blocks, dim=dim, next_dim=dims[i + 1] if i + 1 < len(dims) else None)
            )
        self.layers = nn.ModuleList(stages)
        self.classifier = Classifier(dims[-1], num_classes)
        self.feature_info = [
            {"num_chs": c, "reduction": 4 * 2**i, "module": f"layers.{i}"}
            for i, c in enumerate(dims)
        ]
        self.apply(_initialise_linear)

    def _set_global_pool(self, global_pool: str) -> None:
        if global_pool not in ("avg", ""):
            raise ValueError(f"global_pool must be 'avg' or '', got {global_pool!r}.")
        self.global_pool = global_pool

    def forward_features(self, x: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b h w c"]:
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x)
        return x

    def forward_head(self, x: Float[Tensor, "b h w c"], pre_logits: bool = False) -> Tensor:
        x = self.classifier.norm(x)
        if not self.global_pool:
            return x.permute(0, 3, 1, 2)
        x = F.dropout(x.mean((1, 2)), self.drop_rate, self.training)
        return x if pre_logits else self.classifier.head(x)

    def forward(self, x: Float[Tensor, "b 3 H W"]) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.classifier.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool is not None:
            self._set_global_pool(global_pool)
        self.num_classes = num_classes
        self.classifier.head = (
            nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        )
        _initialise_linear(self.classifier.head)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch gradient checkpointing, which takes time to save memory.

        Numbers and derivatives of every order stay the same. It is off by default.
        """
        for stage in self.layers:
            setattr(stage, "grad_checkpointing", enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's layer groups, which `open_clip`'s tower locking uses."""
        blocks = [
            (r"^layers\.(\d+)\.blocks\.(\d+)", None),
            (r"^layers\.(\d+)\.downsample", (99998,)),
        ]
        stages = [(r"^layers\.(\d+)", None)] if coarse else blocks
        return {"stem": r"^patch_embed", "blocks": [*stages, (r"^classifier\.norm", (99999,))]}


def _patch_embed(in_chans: int, dim: int) -> nn.Sequential:
    """Build two normalised convolutions of stride 2.

    The grid has a quarter of the picture's side.
    """
    return nn.Sequential(
        nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1),
        Permute(0, 2, 3, 1),
        nn.LayerNorm(dim // 2),
        Permute(0, 3, 1, 2),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1),
        Permute(0, 2, 3, 1),
        nn.LayerNorm(dim),
    )


def _initialise_linear(module: nn.Module) -> None:
    """Initialise a Linear: truncated normal of width 0.02, zero bias.

    Convolutions and norms keep PyTorch's initialisation.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


default_cfgs = generate_default_cfgs(
    {
        f"{name}.untrained": {
            "input_size": (3, side, side),
            "num_classes": 1000,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "first_conv": "patch_embed.0",
            "classifier": "classifier.head",
        }
        for name, side in (
            ("vmamba_t220", 224),
            ("vmamba_s", 224),
            ("vmamba_b", 224),
            ("vmamba_tiny_64", 64),
            ("vmamba_small_64", 64),
            ("vmamba_medium_64", 64),
        )
    }
)


def _build(
    name: str, pretrained: bool, defaults: dict[str, Any], overrides: dict[str, Any]
) -> VMamba:
    return build_model_with_cfg(VMamba, name, pretrained, **(defaults | overrides))


@register_model
def vmamba_t220(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Build VMamba-T(0220): 31,715,904 parameters without a head.

    The name is that of VMamba's own tables.
    """
    defaults = dict(dims=(96, 192, 384, 768), depths=(2, 2, 4, 2), gated=True, drop_path_rate=0.2)
    return _build("vmamba_t220", pretrained, defaults, kwargs)


@register_model
def vmamba_s(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Build VMamba-S: 49,378,752 parameters without a head."""
    defaults = dict(dims=(96, 192, 384, 768), depths=(2, 2, 15, 2), gated=False, drop_path_rate=0.3)
    return _build("vmamba_s", pretrained, defaults, kwargs)


@register_model
def vmamba_b(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Build VMamba-B: 87,532,800 parameters without a head."""
    defaults = dict(
        dims=(128, 256, 512, 1024), depths=(2, 2, 15, 2), gated=False, drop_path_rate=0.6
    )
    return _build("vmamba_b", pretrained, defaults, kwargs)


@register_model
def vmamba_tiny_64(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Build a tower for 64-pixel pictures on a CPU: 0.10 M parameters."""
    defaults = dict(dims=(8, 16, 32, 60), depths=(1, 1, 1, 1), gated=False)
    return _build("vmamba_tiny_64", pretrained, defaults, kwargs)


@register_model
def vmamba_small_64(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Build a tower for 64-pixel pictures on a CPU: 0.26 M parameters."""
    defaults = dict(dims=(12, 24, 48, 96), depths=(1, 1, 2, 1), gated=False)
    return _build("vmamba_small_64", pretrained, defaults, kwargs)


@register_model
def vmamba_medium_64(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Build a tower for 64-pixel pictures on a CPU: 1.7 M parameters."""
    defaults = dict(dims=(32, 64, 128, 160), depths=(1, 1, 3, 2), gated=False)
    return _build("vmamba_medium_64", pretrained, defaults, kwargs)
