"""Rows that cannot matter are left out of the Krylov vectors, exactly, and only those."""

import torch
from torch import nn

from landscape.curvature import HessianOperator, Objective, hessian, select_parameters
from landscape.linalg import eigsh
from landscape.linalg.operator import seeded
from tests.helpers.oracles import dense_hessian

TOKENS = torch.tensor([[1, 3, 3], [7, 1, 0]])


class Bag(nn.Module):
    """Mean of embeddings, a hidden layer, and logits: over the vocabulary itself where the table is
    tied.
    """

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        generator = seeded(0)
        self.table = nn.Embedding(9, 4, dtype=torch.float64)
        self.hidden = nn.Linear(4, 4, dtype=torch.float64)
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.tied = tied
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                )

    def forward(self, tokens):
        features = torch.tanh(self.hidden(self.table(tokens).mean(1)))
        return features @ self.table.weight.T if self.tied else features


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch), torch.tensor([2, 0]))


def test_the_support_holds_the_rows_that_the_batch_looks_up_and_every_other_used_parameter():
    model = Bag(tied=False)
    H = hessian(model, loss, TOKENS)
    offsets, start = {}, 0
    for name, parameter in model.named_parameters():
        offsets[name] = start
        start += parameter.numel()
    looked_up = [
        offsets["table.weight"] + 4 * row + column for row in (0, 1, 3, 7) for column in range(4)
    ]
    hidden = list(range(offsets["hidden.weight"], offsets["hidden.weight"] + 20))
    assert sorted(H.support.tolist()) == sorted(looked_up + hidden)
    assert H.n == start


def test_outside_of_the_support_the_dense_hessian_is_zero_and_the_spectrum_is_that_of_the_whole():
    model = Bag(tied=False)
    objective, params = Objective.from_closure(model, loss), select_parameters(model)
    H = HessianOperator(objective, params, TOKENS)
    dense = dense_hessian(objective, params, TOKENS)
    outside = torch.ones(H.n, dtype=torch.bool)
    outside[H.support] = False
    assert outside.any() and (dense[outside] == 0).all() and (dense[:, outside] == 0).all()
    for which in ("LM", "SA"):
        pairs = eigsh(H, 4, which, tol=1e-8)
        assert pairs.settled
        exact = torch.linalg.eigvalsh(dense)
        order = (-exact.abs() if which == "LM" else exact).argsort()[:4]
        torch.testing.assert_close(pairs.values, exact[order], rtol=1e-9, atol=1e-12)
        assert pairs.vectors.shape == (H.n, 4)


def test_a_table_with_another_use_is_kept_whole():
    model = Bag(tied=True)
    H = hessian(model, loss, TOKENS)
    # All but the parameter that the loss does not touch.
    assert len(H.support) == H.n - 2


def test_the_l2_term_reaches_every_row_so_nothing_is_left_out():
    assert hessian(Bag(tied=False), loss, TOKENS, weight_decay=0.1).support is None


def test_a_model_without_a_table_is_its_own_support():
    model = nn.Linear(3, 2, dtype=torch.float64)
    batch = torch.randn(5, 3, generator=seeded(1), dtype=torch.float64)
    assert hessian(model, lambda net, x: net(x).square().sum(), batch).support is None
