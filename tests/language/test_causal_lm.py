"""The loss of causal language models to second order, against dense Hessians of transformers' own
losses in float64.
"""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import landscape
from landscape.errors import ModelError, ObjectiveError

transformers = pytest.importorskip("transformers")

from landscape.curvature import HessianOperator, audit_objective
from landscape.language import causal_lm_objective, token_losses
from landscape.language.model import build_causal_lm
from landscape.language.objective import loss_path
from landscape.linalg import seeded
from landscape.sharded.drawn import with_random_weights
from tests.helpers import tiny_language_models as tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
CONFIGS = {name: config for name, config in tiny.configs().items() if config is not None}
# Logits of two tokens at a time.
CHUNKED = 2 * tiny.VOCABULARY


def built(name, **changes):
    config = CONFIGS[name]
    for key, value in changes.items():
        setattr(config, key, value)
    return build_causal_lm(config, dtype=torch.float64, seed=0)


def random_vectors(n, k=2):
    return torch.randn(n, k, generator=seeded(0), dtype=torch.float64)


@pytest.mark.parametrize(
    "name, tied",
    [("gpt2", True), ("llama", False), ("llama", True), ("mamba", True), ("mamba2", False)],
)
def test_products_are_those_of_the_dense_hessian_of_the_own_loss(name, tied):
    model = built(name, tie_word_embeddings=tied)
    names = [name for name, _ in model.named_parameters()]
    assert ("lm_head.weight" not in names) == tied
    objective, params = causal_lm_objective(model, max_logits=CHUNKED)
    ids = tiny.tokens(2, 5)
    operator = HessianOperator(objective, params, {"tokens": ids}, hvp="retained", check=False)
    dense = tiny.dense_hessian(model, ids)
    vectors = random_vectors(operator.n)
    # Two orders of summation of some hundred terms.
    assert torch.linalg.norm(operator @ vectors - dense @ vectors) <= 1e-12 * torch.linalg.norm(
        dense @ vectors
    )
    assert operator.loss == pytest.approx(tiny.own_loss(model, ids).item(), rel=1e-13)


@pytest.mark.parametrize("name", ["jamba", "qwen3_next"])
def test_a_block_of_a_hybrid_with_experts_is_that_of_the_own_loss(name):
    # Norms, gates, convolutions, time steps and the router, and its couplings to an attention's
    # projection.
    patterns = ["*norm*", "*A_log", "*dt*", "*conv1d*", "*gate*", "*v_proj*"]
    model = built(name)
    objective, params = causal_lm_objective(model, parameters=patterns, max_logits=CHUNKED)
    studied = [parameter for key, parameter in model.named_parameters() if key in params]
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is one for one in studied))
    ids = tiny.tokens(1, 6)
    operator = HessianOperator(objective, params, {"tokens": ids}, hvp="retained", check=False)
    dense = tiny.dense_hessian(model, ids, studied)
    vectors = random_vectors(operator.n)
    assert torch.linalg.norm(operator @ vectors - dense @ vectors) <= 1e-12 * torch.linalg.norm(
        dense @ vectors
    )


@pytest.mark.parametrize(
    "name, chunked", [("gemma2", True), ("granite", True), ("cohere", True), ("minicpm3", None)]
)
def test_the_head_of_every_family_is_its_own(name, chunked):
    if name not in CONFIGS:
        pytest.skip(f"this transformers has no {name}")
    model = built(name)
    path = loss_path(model, max_logits=CHUNKED)
    if chunked is not None:
        assert (path.max_logits is not None) == chunked, path
    objective, params = causal_lm_objective(model, path=path)
    ids = tiny.tokens()
    value = objective(params, {"tokens": ids}).item()
    assert value == pytest.approx(tiny.own_loss(model, ids).item(), rel=1e-13)


def test_a_head_that_is_not_known_is_computed_by_the_model_itself():
    class Squared(type(built("llama"))):
        def forward(self, *args, labels=None, **kwargs):
            output = super().forward(*args, **kwargs)
            output["logits"] = output.logits + 0.01 * output.logits**2
            if labels is not None:
                shifted = output.logits[:, :-1].flatten(0, 1)
                output["loss"] = F.cross_entropy(shifted, labels[:, 1:].flatten())
            return output

    model = built("llama")
    model.__class__ = Squared
    path = loss_path(model, max_logits=CHUNKED)
    assert path.max_logits is None and "more than is known" in str(path)
    objective, params = causal_lm_objective(model, path=path)
    ids = tiny.tokens()
    assert objective(params, {"tokens": ids}).item() == pytest.approx(
        model(input_ids=ids, labels=ids).loss.item(), rel=1e-6
    )


def test_a_loss_of_its_own_is_refused():
    class Doubled(type(built("llama"))):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            if output.loss is not None:
                output["loss"] = 2 * output.loss
            return output

    model = built("llama")
    model.__class__ = Doubled
    with pytest.raises(ModelError, match="its own loss is .* another function"):
        causal_lm_objective(model)


def test_the_auxiliary_loss_of_a_router_is_left_out():
    model = built("qwen3_next", output_router_logits=True)
    CONFIGS["qwen3_next"].output_router_logits = False
    assert model.config.output_router_logits is False
    ids = tiny.tokens(1, 6)
    with tiny.doubles():
        logits = model(input_ids=ids, use_cache=False).logits
    expected = F.cross_entropy(logits[0, :-1], ids[0, 1:]).item()
    objective, params = causal_lm_objective(model)
    assert objective(params, {"tokens": ids}).item() == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_without_numbers_has_buffers_ties_and_loss_of_a_whole_one(name, dtype):
    whole = build_causal_lm(CONFIGS[name], dtype=dtype, seed=0)
    empty = build_causal_lm(CONFIGS[name], dtype=dtype, on_meta=True)
    buffers = [dict(model.named_buffers(remove_duplicate=False)) for model in (whole, empty)]
    assert buffers[0].keys() == buffers[1].keys()
    for key, buffer in buffers[0].items():
        assert buffer.dtype == buffers[1][key].dtype and torch.equal(buffer, buffers[1][key]), key
    assert parameters_of(empty) == parameters_of(whole) and all(
        tensor.is_meta for tensor in empty.parameters()
    )
    # With other weights, that are drawn when they are read, and with those that it is built with.
    drawn = with_random_weights(empty, torch.device("cpu"))
    assert drawn.evaluate(empty, loss_path) == loss_path(whole)
    assert all(tensor.is_meta for tensor in empty.parameters())


def parameters_of(model):
    """Shape and type of each parameter by all of its names."""
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    shapes = {
        id(one): (tuple(one.shape), one.dtype, one.requires_grad) for one in model.parameters()
    }
    return {tuple(group): shapes[key] for key, group in names.items()}


def test_predictions_that_are_not_finite_are_not_taken_for_reading_ahead():
    model = built("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite with the weights that it has"):
        loss_path(model)


def test_random_weights_tell_a_loss_of_its_own_from_the_next_token_loss():
    class Doubled(type(built("llama"))):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            if output.loss is not None:
                output["loss"] = 2 * output.loss
            return output

    model = build_causal_lm(CONFIGS["llama"], dtype=torch.float64, on_meta=True)
    model.__class__ = Doubled
    with pytest.raises(ModelError, match="its own loss is .* another function"):
        with_random_weights(model, torch.device("cpu")).evaluate(model, loss_path)


def test_row_chunks_are_the_retained_graph():
    objective, params = causal_lm_objective(built("llama"), max_logits=CHUNKED)
    batch = {"tokens": tiny.tokens(3)}
    products = {}
    for product in ("retained", "rebuilt", "rows"):
        operator = HessianOperator(
            objective, params, batch, hvp=product, rows=2 if product == "rows" else None
        )
        products[product] = operator @ random_vectors(operator.n)
        assert operator.choice.product == product, operator.choice.reason
    for product in products.values():
        torch.testing.assert_close(product, products["retained"], rtol=1e-10, atol=1e-12)


def test_the_audit_passes_and_the_first_product_is_certified():
    model = built("mamba")
    report = audit_objective(causal_lm_objective, model, {"tokens": tiny.tokens(2, 5)})
    assert report.passed, str(report)


def test_the_own_loss_as_a_function_is_the_objective_in_float32():
    model = build_causal_lm(CONFIGS["llama"], seed=0)
    ids = tiny.tokens(2, 5)
    own = landscape.hessian(model, lambda model, ids: model(input_ids=ids, labels=ids).loss, ids)
    objective, params = causal_lm_objective(model, max_logits=CHUNKED)
    chunked = HessianOperator(objective, params, {"tokens": ids})
    vectors = random_vectors(own.n).float()
    torch.testing.assert_close(chunked @ vectors, own @ vectors, rtol=1e-3, atol=1e-4)
    assert "checked" in chunked.checked and chunked.loss == pytest.approx(own.loss, rel=1e-5)


def test_float32_is_audited_in_float64():
    model = build_causal_lm(CONFIGS["llama"], seed=0)
    report = audit_objective(causal_lm_objective, model, {"tokens": tiny.tokens(2, 5)})
    assert report.passed and report.dtype == torch.float64, str(report)


def test_a_kernel_that_is_installed_is_left_alone(monkeypatch):
    import sys
    from types import ModuleType

    from transformers.integrations import use_kernel_func_from_hub_with_fallback
    from transformers.models.mamba import modeling_mamba

    from landscape.language.plain import _plain_functions, plain_paths

    def selective_scan_fn(*args, **kwargs):
        raise AssertionError("the kernel was called")

    package = ModuleType("kernels_of_a_test")
    package.selective_scan_fn = selective_scan_fn
    monkeypatch.setitem(sys.modules, "kernels_of_a_test", package)
    plain = modeling_mamba.mamba_selective_scan.__wrapped__
    fused = use_kernel_func_from_hub_with_fallback(
        "selective_scan_fn", "kernels_of_a_test", "selective_scan_fn"
    )(plain)
    monkeypatch.setattr(modeling_mamba, "mamba_selective_scan", fused)
    _plain_functions.cache_clear()
    model = built("mamba")
    ids = tiny.tokens(1, 4)
    with pytest.raises(AssertionError, match="the kernel was called"):
        model(input_ids=ids)
    with plain_paths(model):
        model(input_ids=ids)
    assert modeling_mamba.mamba_selective_scan is fused


# --- chunks of tokens -----------------------------------------------------------------------------

TOKENS, WIDTH, WORDS = 13, 5, 11


def heads():
    generator = seeded(0)
    shapes = ((TOKENS, WIDTH), (WORDS, WIDTH), (WORDS,))
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    targets = torch.randint(0, WORDS, (TOKENS,), generator=generator)
    return (
        (hidden, weight, bias),
        targets,
        torch.rand(TOKENS, generator=generator, dtype=torch.float64),
    )


def capped(weights, hidden):
    return 3 * torch.tanh(F.linear(hidden, weights["weight"], weights["bias"]) / 3)


def of_losses(losses, shares):
    # Curved in the losses, so that derivatives by their cotangents count too.
    return (shares * losses * losses).sum()


@pytest.mark.parametrize("size", [1, 2, 5, 12])
@pytest.mark.parametrize("studied", [(1, 1, 1), (1, 0, 0), (0, 1, 1), (0, 0, 1)])
def test_chunks_have_the_derivatives_of_all_logits_at_once(size, studied):
    tensors, targets, shares = heads()
    results = []
    for chunked in (False, True):
        inputs = [
            tensor.clone().requires_grad_(bool(wanted)) for tensor, wanted in zip(tensors, studied)
        ]
        hidden, weights = (
            torch.tanh(inputs[0]) * inputs[0],
            {"weight": inputs[1], "bias": inputs[2]},
        )
        losses = (
            token_losses(
                capped, weights, hidden, targets, vocabulary=WORDS, max_logits=size * WORDS + 1
            )
            if chunked
            else F.cross_entropy(capped(weights, hidden), targets, reduction="none")
        )
        leaves = [tensor for tensor in inputs if tensor.requires_grad]
        value = of_losses(losses, shares)
        gradients = torch.autograd.grad(value, leaves, create_graph=True)
        vectors = [
            torch.randn(2, *leaf.shape, generator=seeded(1), dtype=torch.float64) for leaf in leaves
        ]
        single = torch.autograd.grad(
            gradients, leaves, [vector[0] for vector in vectors], retain_graph=True
        )
        batched = torch.autograd.grad(gradients, leaves, vectors, is_grads_batched=True)
        results.append([value.detach(), *(g.detach() for g in gradients), *single, *batched])
    for chunk, whole in zip(*reversed(results)):
        torch.testing.assert_close(chunk, whole, rtol=1e-12, atol=1e-13)


def test_a_transform_of_torch_func_sees_all_logits_at_once():
    (hidden, weight, bias), targets, shares = heads()

    def value(hidden, size):
        weights = {"weight": weight, "bias": bias}
        return of_losses(
            token_losses(capped, weights, hidden, targets, vocabulary=WORDS, max_logits=size),
            shares,
        )

    chunked, whole = (torch.func.grad(value)(hidden, size) for size in (WORDS, 2**20))
    torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=0)


def test_a_third_derivative_of_chunks_is_refused():
    tensors, targets, shares = heads()
    inputs = [tensor.requires_grad_() for tensor in tensors]
    losses = token_losses(
        capped,
        {"weight": inputs[1], "bias": inputs[2]},
        inputs[0],
        targets,
        vocabulary=WORDS,
        max_logits=WORDS,
    )
    (first,) = torch.autograd.grad(of_losses(losses, shares), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="two derivatives"):
        torch.autograd.grad(first.square().sum(), inputs[0], create_graph=True)


class LargestTensor(TorchDispatchMode):
    """The number of entries of the largest tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [
            leaf.untyped_storage().nbytes() // leaf.element_size()
            for leaf in tree_leaves(result)
            if torch.is_tensor(leaf)
        ]
        self.entries = max([self.entries, *made])
        return result


@pytest.mark.parametrize("max_logits, fits", [(4 * 500, True), (2**30, False)])
def test_no_tensor_has_an_entry_for_each_token_and_word(max_logits, fits):
    words, length = 500, 40
    config = transformers.LlamaConfig(
        vocab_size=words,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=length,
    )
    objective, params = causal_lm_objective(build_causal_lm(config, seed=0), max_logits=max_logits)
    ids = torch.randint(0, words, (1, length), generator=seeded(0))
    with LargestTensor() as watch:
        operator = HessianOperator(objective, params, {"tokens": ids}, hvp="retained", check=False)
        operator @ torch.ones(operator.n)
    # The flat vectors hold all parameters; twice the logits of a chunk are fewer.
    assert (watch.entries < (length - 1) * words) == fits
    assert watch.entries <= operator.n or not fits


def test_entries_beside_tokens_are_refused():
    objective, params = causal_lm_objective(built("llama"))
    ids = tiny.tokens()
    for name in ("labels", "attention_mask"):
        with pytest.raises(ObjectiveError, match=f"got {name} too, but every token counts"):
            objective(params, {"tokens": ids, name: ids})


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_tokens_of_every_whole_type_are_the_same(dtype):
    objective, params = causal_lm_objective(built("llama"), max_logits=CHUNKED)
    ids = tiny.tokens()
    assert torch.equal(
        objective(params, {"tokens": ids.to(dtype)}), objective(params, {"tokens": ids})
    )


def test_training_mode_is_refused_by_name():
    model = built("llama").train()
    for make in (causal_lm_objective, loss_path):
        with pytest.raises(
            ObjectiveError, match="LlamaForCausalLM: is in training mode.*model.eval"
        ):
            make(model)


def test_two_sizes_of_chunks_are_refused():
    model = built("llama")
    with pytest.raises(ValueError, match="max_logits is 40, but path says"):
        causal_lm_objective(model, max_logits=CHUNKED, path=loss_path(model))


@pytest.mark.parametrize("changes", [{"vocab_size": 5}, {"n_positions": 4}])
def test_small_vocabularies_and_contexts_have_their_own_loss(changes):
    sizes = {"vocab_size": 20, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(**sizes | changes, bos_token_id=0, eos_token_id=0)
    model = build_causal_lm(config, dtype=torch.float64)
    ids = tiny.tokens(2, 4) % 5
    objective, params = causal_lm_objective(model)
    assert objective(params, {"tokens": ids}).item() == pytest.approx(
        tiny.own_loss(model, ids).item(), rel=1e-13
    )


def encoder_like(name, **changes):
    config = getattr(transformers, f"{name}Config")(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        **changes,
    )
    return build_causal_lm(config, seed=0)


def test_a_model_that_reads_ahead_is_refused_and_the_same_as_a_decoder_is_not():
    with pytest.raises(
        ModelError,
        match="BertLMHeadModel: its prediction of a token reads that token and later ones",
    ):
        causal_lm_objective(encoder_like("Bert"))
    model = encoder_like("Bert", is_decoder=True)
    objective, params = causal_lm_objective(model)
    ids = tiny.tokens()
    assert objective(params, {"tokens": ids}).item() == pytest.approx(
        model(input_ids=ids, labels=ids).loss.item(), rel=1e-5
    )


def test_an_error_of_the_models_own_forward_pass_is_one_line():
    config = transformers.XGLMConfig(
        vocab_size=20, d_model=8, ffn_dim=8, num_layers=1, attention_heads=2
    )
    model = build_causal_lm(config, dtype=torch.float64)
    with pytest.raises(ModelError) as refused:
        causal_lm_objective(model)
    message = str(refused.value)
    assert (
        message.startswith("XGLMForCausalLM: its own forward pass fails in float64")
        and "\n" not in message
    )
    # The table of words scales what nn.Embedding looks up; its padding row has a gradient like
    # others.
    model = build_causal_lm(config)
    objective, params = causal_lm_objective(model)
    # Token 1 is that of padding; the output layer is tied, and token 0 alone is predicted.
    name, batch = "model.embed_tokens.weight", {"tokens": torch.tensor([[1, 0]])}
    weight = params[name].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(objective({**params, name: weight}, batch), [weight])
    direction = torch.zeros_like(weight)
    direction[1] = torch.randn(8, generator=seeded(0))
    with torch.no_grad():
        ends = [
            objective({**params, name: weight + size * direction}, batch).item()
            for size in (1e-2, -1e-2)
        ]
    # The third derivative by the square of the step, and rounding.
    assert (gradient * direction).sum().item() == pytest.approx(
        (ends[0] - ends[1]) / 2e-2, abs=2e-3
    )


def test_a_table_of_positions_that_counts_from_padding_is_left_as_it_is():
    config = transformers.ProphetNetConfig(
        vocab_size=20,
        hidden_size=8,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_encoder_attention_heads=2,
        num_decoder_attention_heads=2,
        is_decoder=True,
    )
    # It predicts several tokens ahead, from a loss of its own.
    with pytest.raises(ModelError, match="ProphetNetForCausalLM: its own loss is"):
        causal_lm_objective(build_causal_lm(config))


def test_a_row_that_a_table_does_not_have_is_an_error_before_the_lookup():
    from landscape.language.plain import checked_lookups

    table = torch.nn.Embedding(4, 2)
    with checked_lookups():
        assert torch.equal(table(torch.tensor([0, 3])), table.weight[[0, 3]])
        for rows, wrong in (([0, 4], 4), ([-1, 0], -1)):
            with pytest.raises(IndexError, match=f"row {wrong} of a table of 4"):
                table(torch.tensor(rows))
            with pytest.raises(IndexError, match=f"row {wrong} of a table of 4"):
                torch.gather(torch.ones(1, 4), 1, torch.tensor([rows]))


def test_a_batch_that_is_no_text_is_refused():
    objective, params = causal_lm_objective(built("llama"))
    for batch in (
        {"tokens": torch.ones(2, 3)},
        {"tokens": torch.ones(2, 1, dtype=torch.int64)},
        {"text": tiny.tokens()},
    ):
        with pytest.raises(ObjectiveError, match="a batch of text is"):
            objective(params, batch)
    with pytest.raises(ValueError, match="max_logits must be at least 1"):
        token_losses(
            capped,
            {},
            torch.ones(1, 1),
            torch.ones(1, dtype=torch.int64),
            vocabulary=2,
            max_logits=0,
        )
