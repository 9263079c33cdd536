"""Simba: an image encoder of Mamba blocks and convolutional feed-forward networks.

It has four stages; the Mamba blocks scan in one direction. Follows Patro & Agneeswaran 2024 (SiMBA,
arXiv 2403.15360) in the three sizes that CLIP-Mamba (arXiv 2404.19394) trained: channels are mixed
by a feed-forward network, not by EinFFT. Names and shapes of the state dict are those of the
published checkpoints, with `num_classes=0`.

The stem holds batch norms: its curvature is that of one batch only in eval mode.

Shapes: b = pictures, c = channels of a stage, d = channels of its scan, h, w = grid of tokens, l =
h w tokens, n = states per channel.
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

from landscape.towers.convolution import DepthwiseConv1d, DepthwiseConv2d
from landscape.towers.state_space import checkpointed, initial_A_log, state_space


class Mamba(nn.Module):
    """The gated selective state-space layer, along one direction.

    Args:
        dim: Channels c; the scan has d = 2 c.
        num_states: States n per channel; 64 in the published sizes.
        window: Length of the causal convolution, 4 there.

    Source: Gu & Dao 2023 (arXiv 2312.00752).
    """

    def __init__(self, dim: int, *, num_states: int, window: int = 4) -> None:
        super().__init__()
        inner, rank = 2 * dim, math.ceil(dim / 16)
        self.sizes = (rank, num_states, num_states)
        self.window = window
        self.A_log = nn.Parameter(initial_A_log(inner, num_states))
        self.D = nn.Parameter(torch.ones(inner))
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv1d = DepthwiseConv1d(inner, window)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = F.silu(self.conv1d(F.pad(u.transpose(1, 2), (self.window - 1, 0))))
        step, B, C = self.x_proj(u.transpose(1, 2)).transpose(1, 2).split(self.sizes, dim=1)
        # The bias of the step size is added inside the scan, in its precision.
        delta = torch.matmul(self.dt_proj.weight, step)
        y = state_space(
            u, delta, self.A_log, B[:, None], C[:, None], self.D, delta_bias=self.dt_proj.bias
        )
        y = y.to(z.dtype).transpose(1, 2) * F.silu(z)
        return self.out_proj(y)


class NormedMamba(nn.Module):
    """LayerNorm, then Mamba along the tokens; a grid is read row by row."""

    def __init__(self, dim: int, *, num_states: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mamba = Mamba(dim, num_states=num_states)

    def forward(self, x: Float[Tensor, "b *s c"]) -> Float[Tensor, "b *s c"]:
        tokens = self.norm(x).reshape(x.shape[0], -1, x.shape[-1])
        return self.mamba(tokens).reshape(x.shape)


class DWConv(nn.Module):
    """A depthwise 3 x 3 convolution.

    It is a module of its own because the published names have this level.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv2d(dim, 3)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        return self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvolutionalMlp(nn.Module):
    """The feed-forward network: Linear, depthwise convolution on the grid, GELU, Linear."""

    def __init__(self, dim: int, *, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = DWConv(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        return self.fc2(F.gelu(self.dwconv(self.fc1(x))))


class Block(nn.Module):
    """A block: x + Mamba(LN x), then x + FFN(LN x), each branch under stochastic depth."""

    def __init__(self, dim: int, *, mlp_ratio: int, num_states: int, drop_path: float) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = NormedMamba(dim, num_states=num_states)
        self.drop_path = DropPath(drop_path)
        self.mlp = ConvolutionalMlp(dim, hidden=mlp_ratio * dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        x = x + self.drop_path(self.attn(x))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ClassBlock(nn.Module):
    """The same two branches for the class token alone.

    It is a sequence of length one, so nothing is mixed here.
    """

    def __init__(self, dim: int, *, mlp_ratio: int, num_states: int) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = NormedMamba(dim, num_states=num_states)
        self.mlp = Mlp(dim, mlp_ratio * dim)

    def forward(self, token: Float[Tensor, "b 1 c"]) -> Float[Tensor, "b 1 c"]:
        token = token + self.attn(token)
        return token + self.mlp(self.norm2(token))


class PatchEmbed(nn.Module):
    """A convolution that halves the grid, then LayerNorm.

    In the first stage it follows a stem, which halves the grid too.
    """

    def __init__(self, in_chans: int, dim: int, *, stem: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Identity() if stem is None else _stem(in_chans, stem)
        self.proj = nn.Conv2d(stem or in_chans, dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "b e H W"]) -> Float[Tensor, "b h w c"]:
        return self.norm(self.proj(self.conv(x)).permute(0, 2, 3, 1))


def _stem(in_chans: int, hidden: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels, size, stride in ((in_chans, 7, 2), (hidden, 3, 1), (hidden, 3, 1)):
        convolution = nn.Conv2d(
            channels, hidden, size, stride=stride, padding=size // 2, bias=False
        )
        layers += [convolution, nn.BatchNorm2d(hidden), nn.ReLU()]
    return nn.Sequential(*layers)


class Simba(nn.Module):
    """The Simba image encoder.

    Args:
        stem: Channels of the stem.
        dims: Channels of the four stages; the grid of stage i has 1 / (4 * 2**i) of the picture's
            side.
        depths: Numbers of blocks of the stages.
        mlp_ratios: Width of the stages' feed-forward networks, as a multiple of `dims`.
        num_states: See `Mamba`.
        img_size: Accepted, as timm's callers pass it, and not needed: the tower takes any picture
            size.
        in_chans: Channels of a picture.
        num_classes: Width of the head; 0 gives the features.
        global_pool: "avg": the class block refines the mean of the tokens; or "" for the map (b, c,
            h, w) of the last stage, neither pooled nor normalised.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth of the last block; linear from 0 over all blocks, none in
            the class block.
    """

    def __init__(
        self,
        *,
        stem: int,
        dims: Sequence[int],
        depths: Sequence[int],
        mlp_ratios: Sequence[int] = (8, 8, 4, 4),
        num_states: int = 64,
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
        self.num_stages = len(dims)
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self._set_global_pool(global_pool)
        last = max(sum(depths) - 1, 1)
        rates = iter([drop_path_rate * i / last for i in range(sum(depths))])
        for i, (dim, depth, ratio) in enumerate(zip(dims, depths, mlp_ratios)):
            embed = PatchEmbed(dims[i - 1], dim) if i else PatchEmbed(in_chans, dim, stem=stem)
            blocks = [
                Block(dim, mlp_ratio=ratio, num_states=num_states, drop_path=next(rates))
                for _ in range(depth)
            ]
            setattr(self, f"patch_embed{i + 1}", embed)
            setattr(self, f"block{i + 1}", nn.ModuleList(blocks))
            setattr(self, f"norm{i + 1}", nn.LayerNorm(dim, eps=1e-6))
        block = ClassBlock(dims[-1], mlp_ratio=mlp_ratios[-1], num_states=num_states)
        self.post_network = nn.ModuleList([block])
        self.head = nn.Linear(dims[-1], num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            {"num_chs": c, "reduction": 4 * 2**i, "module": f"block{i + 1}"}
            for i, c in enumerate(dims)
        ]
        self.apply(_initialise)

    def _set_global_pool(self, global_pool: str) -> None:
        if global_pool not in ("avg", ""):
            raise ValueError(f"global_pool must be 'avg' or '', got {global_pool!r}.")
        self.global_pool = global_pool

    def forward_features(self, x: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b h w c"]:
        for i in range(1, self.num_stages + 1):
            x = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                x = (
                    checkpointed(block, x)
                    if self.grad_checkpointing and torch.is_grad_enabled()
                    else block(x)
                )
            if i < self.num_stages:
                x = getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2)
        return x

    def forward_head(self, x: Float[Tensor, "b h w c"], pre_logits: bool = False) -> Tensor:
        if not self.global_pool:
            return x.permute(0, 3, 1, 2)
        token = x.mean((1, 2))[:, None]
        for block in self.post_network:
            token = block(token)
        # The last stage has no norm of its own: the norm with its number is that of the class
        # token.
        x = getattr(self, f"norm{self.num_stages}")(token)[:, 0]
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def forward(self, x: Float[Tensor, "b 3 H W"]) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool is not None:
            self._set_global_pool(global_pool)
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        _initialise(self.head)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch gradient checkpointing, which takes time to save memory.

        Numbers and derivatives of every order stay the same. It is off by default.
        """
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's layer groups, which `open_clip`'s tower locking uses."""
        blocks = [
            (r"^patch_embed(\d+)", (-1,)),
            (r"^block(\d+)\.(\d+)", None),
            (r"^norm(\d+)", (99998,)),
        ]
        stages = [(r"^(?:patch_embed|block|norm)(\d+)", None)] if coarse else blocks
        return {"stem": r"^patch_embed1", "blocks": [*stages, (r"^post_network", (99999,))]}


def _initialise(module: nn.Module) -> None:
    """Initialise a module as in the published code.

    It reaches every Linear, also inside Mamba, so all step sizes begin at log 2.

    Linear: truncated normal with standard deviation 0.02, bias 0. Conv2d: normal of variance 2 / (k
    * k * out / groups), bias 0. Conv1d, the norms, A_log and D keep the initialisation of their own
    modules.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = (
            module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        )
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    else:
        return
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
            "first_conv": "patch_embed1.conv.0",
            "classifier": "head",
        }
        for name, side in (
            ("simba_s", 224),
            ("simba_b", 224),
            ("simba_l", 224),
            ("simba_tiny_64", 64),
            ("simba_small_64", 64),
            ("simba_medium_64", 64),
        )
    }
)


def _build(
    name: str, pretrained: bool, defaults: dict[str, Any], overrides: dict[str, Any]
) -> Simba:
    return build_model_with_cfg(Simba, name, pretrained, **(defaults | overrides))


@register_model
def simba_s(pretrained: bool = False, **kwargs: Any) -> Simba:
    """Build Simba-S: 25,693,088 parameters without a head."""
    defaults = dict(stem=32, dims=(64, 128, 320, 448), depths=(3, 4, 6, 3), drop_path_rate=0.1)
    return _build("simba_s", pretrained, defaults, kwargs)


@register_model
def simba_b(pretrained: bool = False, **kwargs: Any) -> Simba:
    """Build Simba-B: 39,183,744 parameters without a head."""
    defaults = dict(stem=64, dims=(64, 128, 320, 512), depths=(3, 4, 12, 3), drop_path_rate=0.1)
    return _build("simba_b", pretrained, defaults, kwargs)


@register_model
def simba_l(pretrained: bool = False, **kwargs: Any) -> Simba:
    """Build Simba-L: 65,736,512 parameters without a head."""
    defaults = dict(stem=64, dims=(96, 192, 384, 512), depths=(3, 6, 18, 3), drop_path_rate=0.3)
    return _build("simba_l", pretrained, defaults, kwargs)


@register_model
def simba_tiny_64(pretrained: bool = False, **kwargs: Any) -> Simba:
    """Build a tower for 64-pixel pictures on a CPU: 0.10 M parameters.

    It has 16 states instead of 64, which is a quarter of the scan's work.
    """
    defaults = dict(stem=8, dims=(8, 16, 24, 40), depths=(1, 1, 1, 1), num_states=16)
    return _build("simba_tiny_64", pretrained, defaults, kwargs)


@register_model
def simba_small_64(pretrained: bool = False, **kwargs: Any) -> Simba:
    """Build a tower for 64-pixel pictures on a CPU: 0.25 M parameters.

    It has 16 states.
    """
    defaults = dict(stem=8, dims=(12, 24, 40, 64), depths=(1, 1, 2, 1), num_states=16)
    return _build("simba_small_64", pretrained, defaults, kwargs)


@register_model
def simba_medium_64(pretrained: bool = False, **kwargs: Any) -> Simba:
    """Build a tower for 64-pixel pictures on a CPU: 1.7 M parameters.

    It has 16 states.
    """
    defaults = dict(stem=16, dims=(24, 48, 112, 144), depths=(1, 1, 3, 2), num_states=16)
    return _build("simba_medium_64", pretrained, defaults, kwargs)
