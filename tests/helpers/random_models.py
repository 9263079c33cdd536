"""Small healthy models drawn at random: chains of convolution, attention, recurrence, norms,
pooling and activations.
"""

import random

import torch
from torch import nn

from landscape.linalg.operator import seeded

ACTIVATIONS = (
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.Softplus,
    nn.LeakyReLU,
    nn.ELU,
    nn.Sigmoid,
    nn.Hardswish,
    nn.PReLU,
)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], width: int) -> None:
        super().__init__()
        self.cells = kind(width, width, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cells(x)[0]


def random_model(seed: int) -> tuple[nn.Module, torch.Tensor]:
    """A model in eval mode and a batch for it, in float32 or float64."""
    choose = random.Random(seed)
    dtype = choose.choice([torch.float32, torch.float64])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = choose.choice([_perceptron, _convolutional, _sequence])
        model, shape = kind(choose)
        model = model.eval()
        for part in model.modules():
            if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                part.running_mean.normal_(std=0.3)
                part.running_var.uniform_(0.3, 2)
    batch = torch.randn(shape, generator=seeded(seed), dtype=torch.float64)
    return model.to(dtype), batch.to(dtype)


def _activation(choose: random.Random) -> nn.Module:
    return choose.choice(ACTIVATIONS)()


def _perceptron(choose: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    width = inputs = choose.randint(2, 9)
    layers: list[nn.Module] = []
    for _ in range(choose.randint(1, 4)):
        wider = choose.randint(2, 12)
        layers += [nn.Linear(width, wider, bias=choose.random() < 0.8)]
        layers += choose.choice(
            [
                [],
                [nn.LayerNorm(wider)],
                [nn.BatchNorm1d(wider)],
                [nn.Dropout(0.3)],
                [nn.RMSNorm(wider)],
            ]
        )
        layers += [_activation(choose)]
        width = wider
    return nn.Sequential(*layers, nn.Linear(width, 3)), (choose.randint(2, 8), inputs)


def _convolutional(choose: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    channels = 3
    layers: list[nn.Module] = []
    for _ in range(choose.randint(1, 3)):
        wider = 2 * choose.randint(1, 4)
        layers += [
            nn.Conv2d(
                channels, wider, choose.choice([1, 3]), padding=1, stride=choose.choice([1, 2])
            )
        ]
        layers += choose.choice(
            [[], [nn.GroupNorm(2, wider)], [nn.BatchNorm2d(wider)], [nn.InstanceNorm2d(wider)]]
        )
        layers += [_activation(choose)]
        residual = Residual(nn.Conv2d(wider, wider, 3, padding=1, groups=2))
        layers += choose.choice([[], [nn.MaxPool2d(2)], [nn.AvgPool2d(2)], [residual]])
        channels = wider
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))
    return model, (choose.randint(2, 5), 3, 16, 16)


def _sequence(choose: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    width = 4 * choose.randint(1, 3)
    layers: list[nn.Module] = []
    for _ in range(choose.randint(1, 3)):
        mixer = choose.choice(
            [
                lambda: Attention(width, 2),
                lambda: Recurrent(nn.LSTM, width),
                lambda: Recurrent(nn.GRU, width),
            ]
        )
        perceptron = nn.Sequential(
            nn.Linear(width, 2 * width), _activation(choose), nn.Linear(2 * width, width)
        )
        layers += [Residual(nn.Sequential(nn.LayerNorm(width), mixer())), Residual(perceptron)]
    return nn.Sequential(*layers, nn.Linear(width, 3)), (
        choose.randint(2, 4),
        choose.randint(2, 7),
        width,
    )
