"""What the writers share: a small model, its data, a case, the table."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One file of a trainer, and the truth about it that was kept in memory.

    Attributes:
        copies: The true weights, by copy.
        epoch: Finished epochs; None if the file cannot say, or was written within an epoch.
        refused: Words of the refusal that is right for it, instead of weights.
    """

    what: str
    path: Path
    copies: dict[str, State] = field(default_factory=dict)
    epoch: int | None = None
    make: Callable[[], nn.Module] | None = None
    refused: str | None = None


def make_net() -> nn.Module:
    """A net with buffers and more than one module."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def data(rows: int = 12) -> torch.utils.data.TensorDataset:
    """Random rows and labels, always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.utils.data.TensorDataset(
        torch.randn(rows, 4, generator=generator), torch.arange(rows) % 3
    )


def loader() -> torch.utils.data.DataLoader:
    """Three batches of four rows."""
    return torch.utils.data.DataLoader(data(), batch_size=4)


def kept(module: nn.Module) -> State:
    """A copy of the weights that no later step changes."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
