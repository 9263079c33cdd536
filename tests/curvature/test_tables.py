"""Embedding tables reduced to the rows that a batch looks up: the products are those of the whole
tables, to the bit.

The reference is double backward by torch on the whole tables, made here. Reducing a table leaves
every operation and the order of its terms as they are, so values are equal; where another strategy
adds in another order, 1e-12 of float64 is allowed.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.curvature import (
    HessianBlocks,
    HessianOperator,
    Objective,
    hessian,
    select_parameters,
)
from landscape.curvature.hvp.products import Product
from landscape.errors import ObjectiveError
from landscape.linalg import eigsh
from landscape.linalg.operator import seeded
from tests.helpers.oracles import dense_hessian, relative_error
from tests.helpers.wrong_derivatives import FAULTS

EXACT = 1e-12
NUM_ROWS, WIDTH = 60, 3
TOKENS = torch.tensor([[7, 1, 7], [59, 0, 23]])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


class Reader(nn.Module):
    """Logits of token sequences by one or two tables, a head, and a parameter that the loss does
    not use.
    """

    def __init__(self, lookup=None, *, middle=nn.Tanh, **options):
        super().__init__()
        self.table = nn.Embedding(NUM_ROWS, WIDTH, **options)
        self.idle = nn.Parameter(torch.zeros(2, 2))
        self.middle = middle()
        self.head = nn.Linear(WIDTH, 2)
        self.lookup = lookup
        self.double()
        with torch.no_grad():
            for seed, parameter in enumerate(self.parameters()):
                parameter.copy_(normal(*parameter.shape, seed=seed))

    def forward(self, tokens):
        words = self.table(tokens) if self.lookup is None else self.lookup(self, tokens)
        return self.head(self.middle(words).mean(1))


def loss(model, tokens):
    return F.cross_entropy(model(tokens), torch.arange(len(tokens)) % 2)


def rowwise(model):
    return Objective(
        lambda params, tokens: torch.func.functional_call(model, params, tokens),
        lambda z, tokens: F.cross_entropy(z, torch.arange(len(tokens)) % 2),
        module=model,
    )


def whole_product(objective, params, batch, v):
    """H v without the L2 term by double backward on the whole tables."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in params.items()}
    pieces = [
        piece.view(leaf.shape)
        for piece, leaf in zip(v.split([p.numel() for p in leaves.values()]), leaves.values())
    ]
    with sdpa_kernel(SDPBackend.MATH):
        gradients = torch.autograd.grad(
            objective.data_term(leaves, batch),
            list(leaves.values()),
            create_graph=True,
            allow_unused=True,
        )
    pairs = [(g, piece) for g, piece in zip(gradients, pieces) if g is not None and g.requires_grad]
    products = torch.autograd.grad(
        [g for g, _ in pairs], list(leaves.values()), [v for _, v in pairs], allow_unused=True
    )
    return torch.cat(
        [
            torch.zeros_like(v).view(-1) if p is None else p.view(-1)
            for p, v in zip(products, pieces)
        ]
    )


@pytest.fixture
def sizes(monkeypatch):
    """The lengths of the vectors that are multiplied, by any strategy."""
    multiply, seen = Product.multiply, []

    def note(self, rows, out):
        seen.append(rows.shape[1])
        multiply(self, rows, out)

    monkeypatch.setattr(Product, "multiply", note)
    return seen


def assert_same_to_the_bit(H, objective, params, batch):
    for seed in range(3):
        v = normal(H.n, seed=seed)
        assert torch.equal(H @ v, whole_product(objective, params, batch, v))


# --- uses of a table ------------------------------------------------------------------------------


def scaled_by_its_shape(model, tokens):
    weight = model.table.weight
    rows, columns = weight.shape
    size = rows + columns + len(weight) + weight.numel() + weight.size(1) + weight.dim()
    return model.table(tokens % len(weight)) / size


def two_lookups(model, tokens):
    return model.table(tokens) * F.embedding(tokens.flip(0) // 2, model.table.weight)


def as_int32(model, tokens):
    return model.table(tokens.int())


def of_both_types(model, tokens):
    return model.table(tokens.int()) + model.table(tokens + 1 - 2 * (tokens > 30).long())


def chosen_by_values(model, tokens):
    """Looks up rows that depend on other parameters."""
    return model.table(tokens + (model.head.weight.detach().sum() > 0).long() * (tokens < 50))


def by_keywords(model, tokens):
    return F.embedding(weight=model.table.weight, input=tokens)


def through_attention(model, tokens):
    words = model.table(tokens)
    return F.scaled_dot_product_attention(words, words, words)


REDUCED = [
    scaled_by_its_shape,
    two_lookups,
    as_int32,
    of_both_types,
    chosen_by_values,
    by_keywords,
    through_attention,
]


def with_a_penalty(model, tokens):
    return model.table(tokens) * model.table.weight.norm()


def tied(model, tokens):
    words = model.table(tokens)
    return words + (words @ model.table.weight.T).softmax(-1) @ model.table.weight


def indexed(model, tokens):
    return model.table.weight[tokens]


def selected(model, tokens):
    return model.table(tokens) + model.table.weight.index_select(0, tokens[0]).mean(0)


def low_level(model, tokens):
    return torch.embedding(model.table.weight, tokens)


def without_gradients(model, tokens):
    with torch.no_grad():
        size = model.table.weight.square().sum()
    return model.table(tokens) * size.rsqrt()


def from_its_data(model, tokens):
    return model.table(tokens) * model.table.weight.data[3].norm()


def half_of_it(model, tokens):
    return F.embedding(tokens // 2, model.table.weight[: NUM_ROWS // 2])


def doubled(model, tokens):
    return F.embedding(tokens, 2 * model.table.weight)


def of_one_type_only(model, tokens):
    if type(model.table.weight) is not torch.Tensor:
        raise TypeError("the table must be a plain tensor")
    return model.table(tokens)


def as_indices(model, tokens):
    return model.table(tokens) + F.embedding(tokens % 2, model.head.weight) * F.embedding(
        tokens, model.table.weight.detach().round()
    )


@torch.jit.script
def _norm_of(weight):
    return weight.detach().norm()


def read_by_torch_script(model, tokens):
    return model.table(tokens) / _norm_of(model.table.weight)


class OwnLookup(torch.autograd.Function):
    """A lookup of its own, whose derivatives are those of F.embedding."""

    @staticmethod
    def forward(ctx, tokens, weight):
        ctx.save_for_backward(tokens)
        ctx.rows = len(weight)
        return F.embedding(tokens, weight)

    @staticmethod
    def backward(ctx, g):
        (tokens,) = ctx.saved_tensors
        table = torch.zeros(ctx.rows, g.shape[-1], dtype=g.dtype)
        return None, table.index_add(0, tokens.reshape(-1), g.reshape(-1, g.shape[-1]))


def by_a_function_of_its_own(model, tokens):
    return OwnLookup.apply(tokens, model.table.weight)


WHOLE = [
    with_a_penalty,
    tied,
    indexed,
    selected,
    low_level,
    without_gradients,
    from_its_data,
    half_of_it,
    doubled,
    of_one_type_only,
    as_indices,
    read_by_torch_script,
    by_a_function_of_its_own,
]
MAKERS = {
    "hessian": lambda model, **options: hessian(model, loss, TOKENS, **options),
    "from_closure": lambda model, **options: HessianOperator(
        Objective.from_closure(model, loss), select_parameters(model), TOKENS, **options
    ),
    "Objective": lambda model, **options: HessianOperator(
        rowwise(model), select_parameters(model), TOKENS, **options
    ),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    "lookup", [None, *REDUCED], ids=lambda lookup: getattr(lookup, "__name__", "its own")
)
def test_a_table_that_is_only_looked_up_is_reduced_and_the_products_are_the_same(
    lookup, make, sizes
):
    model = Reader(lookup)
    H = make(model)
    assert_same_to_the_bit(H, Objective.from_closure(model, loss), select_parameters(model), TOKENS)
    # Some rows, and the head without the idle parameter.
    assert set(sizes) == {len(H.support)} and len(H.support) < 12 * WIDTH + 8


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("lookup", WHOLE)
def test_a_table_with_any_other_use_stays_whole_and_the_products_are_the_same(lookup, make, sizes):
    model = Reader(lookup)
    # What is read without its gradient makes differences disagree, rightly.
    H = make(model, check=False)
    assert_same_to_the_bit(H, Objective.from_closure(model, loss), select_parameters(model), TOKENS)
    assert min(sizes) >= NUM_ROWS * WIDTH


def test_the_values_of_the_dense_hessian_agree_with_the_reference():
    model = Reader(two_lookups)
    objective, params = Objective.from_closure(model, loss), select_parameters(model)
    v = normal(sum(tensor.numel() for tensor in params.values()))
    assert (
        relative_error(
            whole_product(objective, params, TOKENS, v),
            dense_hessian(objective, params, TOKENS) @ v,
        )
        < EXACT
    )


@pytest.mark.parametrize(
    "tokens",
    [
        torch.arange(NUM_ROWS).view(2, -1),
        torch.full((2, 4), 17),
        torch.tensor([[NUM_ROWS - 1], [0]]),
    ],
    ids=["all rows", "one row", "first and last"],
)
def test_all_rows_and_one_row(tokens):
    model = Reader()
    H = hessian(model, loss, tokens)
    assert_same_to_the_bit(H, Objective.from_closure(model, loss), select_parameters(model), tokens)


def test_a_padding_row_that_is_not_looked_up_is_left_out_like_any_other(sizes):
    model = Reader(padding_idx=5)
    H = hessian(model, loss, TOKENS)
    assert_same_to_the_bit(H, Objective.from_closure(model, loss), select_parameters(model), TOKENS)
    assert set(sizes) == {len(H.support)}


def test_a_frozen_table_is_no_parameter(sizes):
    model = Reader()
    model.table.weight.requires_grad_(False)
    H = hessian(model, loss, TOKENS)
    assert_same_to_the_bit(H, Objective.from_closure(model, loss), select_parameters(model), TOKENS)
    assert set(sizes) == {2 * WIDTH + 2}


def test_a_bag_of_words_has_no_second_derivative_and_is_refused_as_ever():
    model = nn.ModuleDict(
        {"words": nn.EmbeddingBag(NUM_ROWS, WIDTH), "head": nn.Linear(WIDTH, 2)}
    ).double()
    with pytest.raises(
        ObjectiveError,
        match="cannot be differentiated twice|cannot be differentiated, so PyTorch would drop",
    ):
        H = hessian(
            model,
            lambda model, tokens: model["head"](model["words"](tokens)).square().mean(),
            TOKENS,
        )
        H @ normal(H.n)


def test_a_sparse_gradient_is_refused_whether_all_rows_are_looked_up_or_not():
    for tokens in (TOKENS, torch.arange(NUM_ROWS).view(2, -1)):
        with pytest.raises(ObjectiveError, match="sparse=False"):
            hessian(Reader(sparse=True), loss, tokens)


# --- parameters that the loss does not use --------------------------------------------------------


def test_an_idle_parameter_that_the_loss_reaches_behind_the_model_is_refused():
    model = Reader()
    kept = list(model.parameters())

    def penalised(model, tokens):
        return (
            loss(model, tokens) + kept[0].square().sum()
            if kept[0] is captured
            else loss(model, tokens)
        )

    captured = kept[0]
    assert captured is model.idle
    with pytest.raises(
        ObjectiveError, match=r"^idle: the loss uses this parameter other than through the model"
    ):
        hessian(model, penalised, TOKENS)


def test_a_loss_may_ask_for_the_gradient_by_a_parameter_that_it_does_not_use(sizes):
    def penalised(model, tokens):
        value = loss(model, tokens)
        others = [model.idle, model.head.weight]
        slopes = torch.autograd.grad(value, others, create_graph=True, allow_unused=True)
        return value + sum(slope.square().sum() for slope in slopes if slope is not None)

    model = Reader()
    for product in ("retained", "rebuilt", "traced"):
        H = hessian(model, penalised, TOKENS, hvp=product)
        assert_same_to_the_bit(
            H, Objective.from_closure(model, penalised), select_parameters(model), TOKENS
        )
        assert H.choice.product == product
    # It is left out of the vectors, and so are rows of the table.
    assert set(sizes) == {len(H.support)}


def test_the_l2_term_reaches_every_entry(sizes):
    model = Reader()
    H = hessian(model, loss, TOKENS, weight_decay=0.25)
    v = normal(H.n)
    plain = whole_product(Objective.from_closure(model, loss), select_parameters(model), TOKENS, v)
    assert torch.equal(H @ v, plain.add(v, alpha=0.25))
    assert H.support is None and max(sizes) < NUM_ROWS * WIDTH
    squares = sum(float(parameter.detach().square().sum()) for parameter in model.parameters())
    assert H.loss == pytest.approx(loss(model, TOKENS).item() + 0.125 * squares, rel=1e-14)


# --- strategies and blocks ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lookup", [None, two_lookups, tied], ids=["its own", "two lookups", "tied"]
)
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("product", ["retained", "rebuilt", "jvp", "rows", "traced"])
def test_every_strategy_multiplies_by_the_dense_hessian(product, columns, lookup):
    # Row i of the features depends on row i of the tokens alone, so that rows can be taken in
    # chunks.
    model = Reader(None if lookup is two_lookups and product == "rows" else lookup)
    objective, params = rowwise(model), select_parameters(model)
    dense = dense_hessian(objective, params, TOKENS)
    H = HessianOperator(objective, params, TOKENS, hvp=product, columns=columns)
    V = normal(H.n, 4)
    assert relative_error(H @ V, dense @ V) < EXACT
    assert H.choice.product == product
    assert (
        relative_error(H.matmat_in_support(V[H.support]), (dense @ _within(H, V))[H.support])
        < EXACT
    )


def _within(H, V):
    return torch.zeros_like(V).index_copy_(0, H.support, V[H.support])


@pytest.mark.parametrize("product", ["retained", "rebuilt", "traced"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_blocks_of_modules_are_those_of_the_dense_hessian(product, weight_decay):
    model = Reader()
    objective = Objective.from_closure(model, loss, weight_decay=weight_decay)
    params = select_parameters(model)
    dense = dense_hessian(objective, params, TOKENS)
    modules = {
        "table": ("table.weight",),
        "head": ("head.bias", "head.weight"),
        "ends": ("table.weight", "idle", "head.bias"),
    }
    starts, start = {}, 0
    for name, tensor in params.items():
        starts[name] = torch.arange(start, start + tensor.numel())
        start += tensor.numel()
    blocks = HessianBlocks(objective, params, TOKENS, modules, hvp=product)
    for module, names in modules.items():
        block, where = blocks.block(module), torch.cat([starts[name] for name in names])
        V = normal(block.n, 2)
        assert relative_error(block @ V, dense[where][:, where] @ V) < EXACT


# --- what solvers see -----------------------------------------------------------------------------


def test_a_solver_works_with_vectors_of_the_support_alone(monkeypatch, sizes):
    model = Reader()
    H = hessian(model, loss, TOKENS)
    inner, seen = HessianOperator.matmat_in_support, []

    def note(self, V):
        seen.append(V.shape[0])
        return inner(self, V)

    monkeypatch.setattr(HessianOperator, "matmat_in_support", note)
    pairs = eigsh(H, 3, "LM", tol=1e-10)
    assert set(seen) == set(sizes) == {len(H.support)} and len(seen) == pairs.num_matvecs > 3
    exact = torch.linalg.eigvalsh(
        dense_hessian(Objective.from_closure(model, loss), select_parameters(model), TOKENS)
    )
    torch.testing.assert_close(
        pairs.values, exact[exact.abs().argsort(descending=True)][:3], rtol=1e-9, atol=1e-13
    )
    assert pairs.vectors.shape == (H.n, 3)


def test_vectors_outside_of_the_support_are_multiplied_to_zero():
    H = hessian(Reader(), loss, TOKENS)
    v = normal(H.n)
    v[H.support] = 0
    assert v.any() and not (H @ v).any()


@pytest.mark.parametrize(
    "fault", ["an opaque function that drops terms", "a backward that is off by a factor"]
)
def test_the_first_product_is_still_held_against_differences(fault):
    model = Reader()
    H = hessian(model, loss, TOKENS)
    assert H.check().verdict == "passed" and H.spot_check.product_error < 1e-6
    H = hessian(Reader(middle=FAULTS[fault]), loss, TOKENS)
    with pytest.raises(
        ObjectiveError, match=r"failed when the first product was held against differences"
    ):
        H @ normal(H.n)


def test_unit_vectors_are_checked_with_a_vector_of_all_that_the_loss_depends_on():
    H = hessian(Reader(middle=FAULTS["a backward that is off by a factor"]), loss, TOKENS)
    unit = torch.zeros(H.n, dtype=torch.float64)
    unit[H.support[0]] = 1
    with pytest.raises(ObjectiveError, match="held against differences"):
        H @ unit


def test_a_product_that_is_not_finite_names_the_table():
    model = Reader(lambda model, tokens: model.table(tokens).pow(1.5))
    with torch.no_grad():
        model.table.weight.abs_()
        model.table.weight[23, 1] = 0
    H = hessian(model, loss, TOKENS, check=False)
    with pytest.raises(
        ObjectiveError, match=r"^table\.weight: a product with the Hessian is not finite"
    ):
        H @ normal(H.n)


# --- what must stay as it was ---------------------------------------------------------------------


@pytest.mark.parametrize("product", ["retained", "rebuilt", "traced"])
def test_neither_the_model_nor_the_operator_reaches_the_other(product):
    model = Reader()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    H = hessian(model, loss, TOKENS, hvp=product)
    v = normal(H.n)
    first = H @ v
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert type(model.table.weight) is nn.Parameter
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    model.table.weight.data.mul_(3)
    assert torch.equal(H @ v, first)


@pytest.mark.parametrize("product", ["rebuilt", "jvp"])
def test_tokens_that_are_changed_in_place_are_refused_where_no_graph_is_kept(product):
    tokens = TOKENS.clone()
    H = hessian(Reader(), loss, tokens, hvp=product)
    H @ normal(H.n)
    tokens[0, 0] = 44
    with pytest.raises(
        ObjectiveError,
        match="looks up other rows of an embedding table .*changed in place.*on a copy",
    ):
        H @ normal(H.n)


@pytest.mark.parametrize(
    "failing", [("retained",), ("retained", "rebuilt")], ids=["rebuilt", "rows"]
)
@pytest.mark.parametrize("after", [0, 2])
def test_what_takes_over_when_memory_runs_out_works_on_the_reduced_tables(
    monkeypatch, sizes, failing, after
):
    model, counts = Reader(), {"made": 0}
    H = HessianOperator(rowwise(model), select_parameters(model), TOKENS, check=False)
    multiply = Product.multiply

    def run(self, rows, out):
        if self.name in failing and counts["made"] >= after:
            raise MemoryError("short")
        counts["made"] += 1
        multiply(self, rows, out)

    monkeypatch.setattr(Product, "multiply", run)
    dense = dense_hessian(rowwise(model), select_parameters(model), TOKENS)
    V = normal(H.n, 4)
    assert relative_error(H @ V, dense @ V) < EXACT
    assert H.choice.product in ("rows", "rebuilt") and H.choice.product not in failing
    assert set(sizes) == {len(H.support)}
