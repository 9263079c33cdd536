"""Embedding options that change gradients or weights beside the loss are refused, and only where
they matter.

PyTorch zeroes the gradient of the padding row, divides gradients by word counts under
scale_grad_by_freq, and rewrites the table in every forward pass under max_norm: none of it is part
of the loss, so none of it is in its Hessian.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscape import audit, gauss_newton, hessian, hessian_of_batches, per_module_spectra
from landscape.curvature import (
    FiniteDifferenceOperator,
    HessianOperator,
    Objective,
    gradient,
    select_parameters,
)
from landscape.curvature.guards import check_twice_differentiable
from landscape.errors import ObjectiveError
from landscape.linalg import seeded
from tests.helpers.oracles import dense_hessian, relative_error

# Row 0 is looked up three times, rows 4 and 5 never.
TOKENS = torch.tensor([[0, 1, 2], [3, 0, 0]])
UNPADDED = torch.tensor([[1, 1, 2], [3, 2, 4]])
# A product sums about 1e3 terms in float64.
EXACT = 1e-12


class Reader(nn.Module):
    """Logits of token sequences: a table of 6 words of 3 numbers, and a head."""

    def __init__(self, *, lookup=None, **options):
        super().__init__()
        self.table = nn.Embedding(6, 3, **options)
        self.head = nn.Linear(3, 2)
        self.lookup = lookup
        self.double()
        with torch.no_grad():
            for seed, parameter in enumerate(self.parameters()):
                parameter.copy_(
                    torch.randn(parameter.shape, generator=seeded(seed), dtype=torch.float64)
                )

    def forward(self, tokens):
        words = (
            self.table(tokens) if self.lookup is None else self.lookup(tokens, self.table.weight)
        )
        return self.head(torch.tanh(words).mean(1))


def logits(model, tokens):
    return model(tokens)


def cross_entropy(z, tokens):
    return F.cross_entropy(z, torch.tensor([1, 0]))


def loss(model, tokens):
    return cross_entropy(model(tokens), tokens)


def rowwise(model):
    return Objective(
        lambda params, tokens: torch.func.functional_call(model, params, tokens),
        cross_entropy,
        module=model,
    )


def in_row_chunks(model, tokens):
    return HessianOperator(rowwise(model), select_parameters(model), tokens, hvp="rows", rows=1)


OPERATORS = {
    "hessian": lambda model, tokens: hessian(model, loss, tokens),
    "row chunks": in_row_chunks,
    "batches": lambda model, tokens: hessian_of_batches(model, loss, [tokens, tokens]),
    "gauss-newton": lambda model, tokens: gauss_newton(model, logits, cross_entropy, tokens),
    "blocks": lambda model, tokens: per_module_spectra(model, loss, tokens, k=1),
    "finite differences": lambda model, tokens: FiniteDifferenceOperator(
        Objective.from_closure(model, loss), select_parameters(model), tokens
    ),
}


def truth(model, tokens):
    """The dense Hessian of the same numbers in a table without options."""
    plain = Reader()
    plain.load_state_dict(model.state_dict())
    return dense_hessian(Objective.from_closure(plain, loss), select_parameters(plain), tokens)


def matrix(H):
    return H @ torch.eye(H.n, dtype=torch.float64)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_a_padding_row_that_is_looked_up_is_refused_by_every_operator(operator):
    message = (
        r"table \(Embedding\): zeroes the gradient of row 0 \(padding_idx=0\)"
        r".*module\.padding_idx = None"
    )
    with pytest.raises(ObjectiveError, match=message):
        operator(Reader(padding_idx=0), TOKENS)


def test_without_padding_idx_the_same_model_has_the_hessian_that_the_message_promises():
    model = Reader(padding_idx=0)
    model.table.padding_idx = None
    assert relative_error(matrix(hessian(model, loss, TOKENS)), truth(model, TOKENS)) < EXACT


@pytest.mark.parametrize(
    "make",
    [hessian, lambda model, loss, tokens: in_row_chunks(model, tokens)],
    ids=["whole", "chunks"],
)
def test_a_padding_row_that_no_row_of_the_batch_looks_up_is_no_fault(make):
    model = Reader(padding_idx=0)
    H = make(model, loss, UNPADDED)
    assert relative_error(matrix(H), truth(model, UNPADDED)) < EXACT
    assert audit(model, loss, UNPADDED).passed


def test_the_padding_row_of_a_table_that_is_not_differentiated_is_no_fault():
    model = Reader(padding_idx=0)
    H = hessian(model, loss, TOKENS, parameters="head.*")
    assert relative_error(matrix(H), truth(model, TOKENS)[18:, 18:]) < EXACT
    # Nor where the loss holds a table that needs gradients for purposes of its own.
    other = nn.Embedding(6, 2, padding_idx=0).double()
    hessian(
        model,
        lambda model, tokens: loss(model, tokens) + other(tokens).sum(),
        TOKENS,
        parameters="head.*",
    )


def test_a_table_made_of_parameters_counts_as_one():
    def doubled(tokens, weight):
        return F.embedding(tokens, 2 * weight, padding_idx=-6)

    with pytest.raises(
        ObjectiveError,
        match=r"the model \(Reader\): zeroes the gradient of row 0 \(padding_idx=0\)",
    ):
        hessian(Reader(lookup=doubled), loss, TOKENS)


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("way", ["module", "function"])
def test_gradients_scaled_by_frequency_are_refused_by_every_operator(operator, way):
    def scaled(tokens, weight):
        return F.embedding(tokens, weight, scale_grad_by_freq=True)

    model = Reader(scale_grad_by_freq=True) if way == "module" else Reader(lookup=scaled)
    where = r"table \(Embedding\)" if way == "module" else r"the model \(Reader\)"
    with pytest.raises(
        ObjectiveError,
        match=rf"{where}: divides the gradient of every row.*scale_grad_by_freq = False",
    ):
        operator(model, TOKENS)


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}], ids=str)
def test_a_bag_of_words_is_refused_for_the_same_options(options):
    with pytest.raises(ObjectiveError, match=r"^words \(EmbeddingBag\)"):
        check_twice_differentiable(nn.ModuleDict({"words": nn.EmbeddingBag(6, 3, **options)}))


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_a_table_that_is_rescaled_while_it_is_read_is_refused_by_every_operator_and_by_the_audit(
    operator,
):
    model = Reader(max_norm=0.5)
    before = model.table.weight.detach().clone()
    with pytest.raises(
        ObjectiveError,
        match=r"table \(Embedding\): rescales .*max_norm=0\.5.*module\.max_norm = None",
    ):
        operator(model, TOKENS)
    report = audit(model, loss, TOKENS)
    assert not report.passed and "table (Embedding)" in report.faulty_modules, str(report)
    assert torch.equal(model.table.weight, before)


def renormalised(tokens, weight):
    return F.embedding(tokens, weight, max_norm=0.5)


def clipped(tokens, weight):
    with torch.no_grad():
        weight.clamp_(-0.5, 0.5)
    return weight[tokens]


def clipped_too_late(tokens, weight):
    words = weight[tokens] * weight.sum()
    with torch.no_grad():
        weight.mul_(0.9)
    return words


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("lookup", [renormalised, clipped, clipped_too_late])
def test_a_forward_pass_that_writes_into_its_parameters_is_refused_by_name(operator, lookup):
    model = Reader(lookup=lookup)
    before = model.table.weight.detach().clone()
    with pytest.raises(ObjectiveError, match=r"table\.weight: .*written to in place"):
        operator(model, TOKENS)
    assert torch.equal(model.table.weight, before)


def test_the_gradient_has_the_same_guards():
    model = Reader(padding_idx=0)
    objective, params = Objective.from_closure(model, loss), select_parameters(model)
    with pytest.raises(ObjectiveError, match=r"zeroes the gradient of row 0"):
        gradient(objective, params, TOKENS)
    model = Reader(lookup=clipped)
    with pytest.raises(ObjectiveError, match=r"table\.weight: .*written to in place"):
        gradient(Objective.from_closure(model, loss), select_parameters(model), TOKENS)


def test_finite_differences_refuse_what_the_module_says():
    for options in ({"max_norm": 0.5}, {"scale_grad_by_freq": True}):
        model = Reader(**options)
        with pytest.raises(ObjectiveError, match=r"^table \(Embedding\)"):
            FiniteDifferenceOperator(
                Objective.from_closure(model, loss), select_parameters(model), TOKENS
            )
