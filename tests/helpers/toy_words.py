"""A classifier of a few hundred parameters with an embedding table, and batches of it that look up
rows in other numbers.
"""

import torch
from torch import nn
from torch.nn import functional as F

from landscape.curvature import HessianOperator, Objective, select_parameters
from landscape.linalg.operator import seeded


class Words(nn.Module):
    """A classifier of two words and two numbers, with a word of its own that lies elsewhere among
    the rows of each batch.
    """

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(100, 3)
        self.register_buffer("own", torch.tensor([50]))
        self.mix = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, batch):
        words = self.table(batch["words"]) * self.table(self.own)
        return self.mix(torch.cat([words.flatten(1), batch["numbers"]], dim=1))


def words_problem(device="cpu", seed=0):
    torch.manual_seed(seed)
    model = Words().double().eval().to(device)
    return Objective.from_closure(
        model, lambda model, batch: F.cross_entropy(model(batch), batch["labels"])
    ), model


def words_batch(seed, num_words=100, device="cpu"):
    """Twelve rows, of which the words are among the first `num_words`, so that batches look up rows
    in other numbers.
    """
    generator = seeded(seed)
    batch = {
        "words": torch.randint(num_words, (12, 2), generator=generator),
        "numbers": torch.randn(12, 2, generator=generator, dtype=torch.float64),
        "labels": torch.randint(3, (12,), generator=generator),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def traced(objective, model, batch):
    return HessianOperator(objective, select_parameters(model), batch, hvp="traced", check=False)
