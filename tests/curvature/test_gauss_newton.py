"""The Gauss-Newton operator against the dense matrix: a Jacobian that differences confirm around a
closed-form Hessian.
"""

from collections import UserDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import landscape
from landscape.clip.objectives import contrastive_objective, cross_entropy_objective
from landscape.curvature import (
    ConvexCut,
    GaussNewtonOperator,
    HessianOperator,
    Objective,
    select_parameters,
)
from landscape.curvature.objective import call_with_parameters
from landscape.errors import ObjectiveError
from landscape.linalg import seeded
from tests.helpers.oracles import (
    dense_hessian,
    dense_jacobian,
    difference_pushforward,
    relative_error,
)
from tests.helpers.toy_clip import make_toy_clip, toy_pictures
from tests.helpers.wrong_derivatives import SavedSine
from tests.towers.test_simba import _toy as toy_simba
from tests.towers.test_vmamba import _toy as toy_vmamba

# A product sums about 1e3 terms in float64.
EXACT = 1e-12


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def pair_logits(model, batch):
    """Written out, as in conftest.contrastive_loss."""
    image = F.normalize(model.encode_image(batch["image"]), dim=-1)
    text = F.normalize(model.encode_text(batch["text"]), dim=-1)
    return model.logit_scale.exp() * image @ text.T


def softmax_hessian(logits):
    """Of the mean cross-entropy over the rows of (b, c) logits, whatever the labels, as a (b c, b
    c) matrix.
    """
    p = logits.softmax(1)
    return torch.block_diag(*(torch.diag(row) - torch.outer(row, row) for row in p)) / len(p)


def contrastive_hessian(logits):
    """Of the mean of the cross-entropies over rows and over columns, by the logits (b, b)."""
    count = len(logits)
    swap = torch.arange(count * count).view(count, count).T.reshape(-1)
    return (softmax_hessian(logits) + softmax_hessian(logits.T)[swap][:, swap]) / 2


def outputs_of(model, outputs, batch):
    return lambda params: call_with_parameters(model, params, outputs, batch)


def confirmed_jacobian(function, params, *, step):
    """The dense Jacobian, once central differences along three random directions agree."""
    jacobian = dense_jacobian(function, params)
    for seed in range(3):
        v = F.normalize(normal(jacobian.shape[1], seed=seed), dim=0)
        # Truncation leaves 1e-10; a wrong rule is off by 1e-2 and more.
        assert (
            relative_error(difference_pushforward(function, params, v, step=step), jacobian @ v)
            < 1e-8
        )
    return jacobian


# --- the matrix -----------------------------------------------------------------------------------


def toy_problem(tower):
    texts = torch.tensor([[1, 9, 0], [2, 3, 9], [9, 4, 4], [5, 6, 9]])
    return make_toy_clip(tower), {"image": toy_pictures(4), "text": texts}


@pytest.mark.parametrize("name", ["vit", "vmamba", "simba"])
def test_the_contrastive_matrix_of_every_tower_is_the_dense_one_and_positive_semidefinite(
    name, clip_problem
):
    if name == "vit":
        model, batch = clip_problem.model, clip_problem.batch
    else:
        model, batch = toy_problem({"vmamba": toy_vmamba, "simba": toy_simba}[name](num_classes=6))
    objective, params = contrastive_objective(model, parameters=["visual.*", "logit_scale"])
    operator = GaussNewtonOperator(objective, params, batch)
    # A step that is unlikely to cross a kink of a ReLU in Simba's stem.
    jacobian = confirmed_jacobian(outputs_of(model, pair_logits, batch), params, step=1e-4)
    with torch.no_grad():
        head = contrastive_hessian(pair_logits(model, batch))
    dense = jacobian.T @ head @ jacobian
    V = normal(operator.n, 4, seed=5)
    assert relative_error(operator @ V, dense @ V) < EXACT
    assert operator.num_outputs == len(batch["image"]) ** 2
    # Every vector that is not in the span of the rows of J is mapped to zero.
    forms = (V * (operator @ V)).sum(0)
    assert (forms >= 0).all()


def test_no_eigenvalue_of_the_contrastive_matrix_is_negative_where_the_hessian_has_negative_ones(
    clip_problem,
):
    # Parameters of both towers, and the temperature.
    patterns = ["*.ln_?.*", "*.attn.*", "text_projection", "logit_scale"]
    objective, params = contrastive_objective(clip_problem.model, parameters=patterns)
    operator = GaussNewtonOperator(objective, params, clip_problem.batch, columns=50)
    identity = torch.eye(operator.n, dtype=torch.float64)
    matrix = operator @ identity
    assert relative_error(matrix, matrix.T) < EXACT
    values = torch.linalg.eigvalsh(matrix)
    assert values[0] > -1e-13 * values[-1]
    # 36 logits, and a shift of all of them changes nothing.
    assert (values > 1e-10 * values[-1]).sum() <= 35
    hessian = HessianOperator(objective, params, clip_problem.batch, columns=50)
    assert torch.linalg.eigvalsh(hessian @ identity)[0] < -1e-3 * values[-1]


def test_the_matrix_of_a_classifier_is_the_dense_one_with_its_weight_decay(mlp_problem):
    model, (x, labels) = mlp_problem.model, mlp_problem.batch
    objective, params = cross_entropy_objective(model, weight_decay=0.3)
    operator = GaussNewtonOperator(objective, params, {"image": x, "label": labels})
    jacobian = confirmed_jacobian(
        outputs_of(model, lambda model, x: model(x), x), params, step=1e-3
    )
    with torch.no_grad():
        dense = jacobian.T @ softmax_hessian(model(x)) @ jacobian + 0.3 * torch.eye(
            operator.n, dtype=torch.float64
        )
    assert relative_error(operator @ torch.eye(operator.n, dtype=torch.float64), dense) < EXACT
    assert operator.support is None
    assert operator.loss == pytest.approx(
        float(objective(params, {"image": x, "label": labels})), rel=1e-14
    )


def test_the_sigmoid_loss_is_cut_at_its_logits_too():
    from open_clip.loss import SigLipLoss

    from landscape.clip.objectives import _cut_at_logits

    criterion = SigLipLoss()
    features = {
        "image": F.normalize(normal(5, 3), dim=1),
        "text": F.normalize(normal(5, 3, seed=1), dim=1),
    }
    scalars = {"logit_scale": torch.tensor(4.0), "logit_bias": torch.tensor(-1.0)}
    cut = _cut_at_logits(criterion)
    rows = {name: value.double().expand(5) for name, value in scalars.items()}
    logits = cut.outputs(features | rows, None).detach().requires_grad_()
    whole = criterion(
        features["image"], features["text"], scalars["logit_scale"], scalars["logit_bias"]
    )
    torch.testing.assert_close(cut.convex(logits, None), whole, rtol=1e-14, atol=0)
    hessian = torch.autograd.functional.hessian(lambda z: cut.convex(z, None), logits).reshape(
        25, 25
    )
    sigmoid = logits.detach().reshape(-1).sigmoid()
    torch.testing.assert_close(
        hessian, torch.diag(sigmoid * (1 - sigmoid)) / 5, rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_for_a_linear_model_it_is_the_hessian(weight_decay):
    model = nn.Linear(4, 3).double()
    batch = normal(8, 4), torch.arange(8) % 3
    losses = {
        "cross-entropy": lambda z, batch: F.cross_entropy(z, batch[1]),
        "squared error": lambda z, batch: (z - 1).square().mean(),
        "both of two outputs": lambda z, batch: (
            F.cross_entropy(z, batch[1]) + z.logsumexp(1).square().sum()
        ),
    }
    for name, loss in losses.items():
        options = {"weight_decay": weight_decay}
        G = landscape.gauss_newton(
            model, lambda model, batch: model(batch[0]), loss, batch, **options
        )
        objective = Objective.from_closure(
            model, lambda model, batch: loss(model(batch[0]), batch), **options
        )
        truth = dense_hessian(objective, select_parameters(model), batch)
        assert relative_error(G @ torch.eye(15, dtype=torch.float64), truth) < EXACT, name


def test_outputs_may_be_a_nest_in_which_some_tensors_are_constants(mlp_problem):
    model, (x, labels) = mlp_problem.model, mlp_problem.batch

    def plain_loss(z, batch):
        return F.cross_entropy(z, labels) + z.square().sum()

    def outputs(model, batch):
        z = model(x)
        return {"first": z[:4], "labels": labels, "rest": [z[4:], "a note", z.sum().detach()]}

    def loss(nest, batch):
        z = torch.cat([nest["first"], nest["rest"][0]])
        return F.cross_entropy(z, nest["labels"]) + z.square().sum()

    plain = landscape.gauss_newton(model, lambda model, _: model(x), plain_loss, None)
    nested = landscape.gauss_newton(model, outputs, loss, None)
    assert nested.num_outputs == plain.num_outputs == 27
    V = normal(plain.n, 3)
    assert relative_error(nested @ V, plain @ V) < EXACT


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_blocks_of_vectors_are_multiplied_as_one_by_one(columns, clip_problem):
    objective, params = contrastive_objective(clip_problem.model)
    V = normal(1705, 5)
    one_by_one = GaussNewtonOperator(objective, params, clip_problem.batch) @ V
    blocked = GaussNewtonOperator(objective, params, clip_problem.batch, columns=columns)
    assert relative_error(blocked @ V, one_by_one) < EXACT
    assert (blocked @ V[:, :0]).shape == (1705, 0)


def test_in_float32_products_have_the_digits_of_float32(clip_problem):
    import copy

    model = copy.deepcopy(clip_problem.model).float()
    batch = {"image": clip_problem.batch["image"].float(), "text": clip_problem.batch["text"]}
    operator = GaussNewtonOperator(*contrastive_objective(model), batch)
    exact = GaussNewtonOperator(*contrastive_objective(clip_problem.model), clip_problem.batch)
    V = normal(operator.n, 3)
    # Some 1e3 roundings of 6e-8 along a network, most of which cancel.
    assert relative_error((operator @ V.float()).double(), exact @ V) < 1e-5


def test_rows_of_an_embedding_that_no_caption_uses_are_outside_of_the_support(clip_problem):
    objective, params = contrastive_objective(clip_problem.model)
    operator = GaussNewtonOperator(objective, params, clip_problem.batch)
    hessian = HessianOperator(objective, params, clip_problem.batch)
    assert torch.equal(operator.support, hessian.support) and len(operator.support) < operator.n
    assert landscape.check_operator(operator).outside == 0


def test_training_on_does_not_touch_the_operator_and_building_it_does_not_touch_the_model():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    state = torch.get_rng_state()
    G = landscape.gauss_newton(
        model, lambda model, x: model(x), lambda z, _: z.square().mean(), normal(5, 3)
    )
    v = normal(G.n)
    before = G @ v
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        parameter.grad is None and parameter.requires_grad for parameter in model.parameters()
    )
    nn.init.zeros_(model[0].weight)
    assert torch.equal(G @ v, before)


def test_a_hugging_face_batch_is_taken_as_it_is():
    model = nn.Linear(3, 2).double()
    x, y = normal(4, 3), torch.tensor([0, 1, 1, 0])
    batch = UserDict(x=x, y=y)

    def outputs(model, batch):
        return model(batch["x"])

    G = landscape.gauss_newton(
        model, outputs, lambda z, batch: F.cross_entropy(z, batch["y"]), batch
    )
    truth = landscape.hessian(model, lambda model, _: F.cross_entropy(model(x), y), None)
    v = normal(G.n)
    assert relative_error(G @ v, truth @ v) < EXACT
    with pytest.raises(ObjectiveError, match=r"batch\['x'\]: is on meta"):
        landscape.gauss_newton(model, outputs, lambda z, batch: z.sum(), UserDict(x=x.to("meta")))


# --- what is refused ------------------------------------------------------------------------------


def refused(message, outputs, loss, *, model=None, batch=None):
    model = model if model is not None else nn.Linear(3, 4).double()
    with pytest.raises(ObjectiveError, match=message):
        landscape.gauss_newton(model, outputs, loss, normal(5, 3) if batch is None else batch)


def forward(model, batch):
    return model(batch)


def test_a_cut_at_the_features_is_refused_because_the_loss_is_not_convex_there(clip_problem):
    def features(model, batch):
        image, text = model.encode_image(batch["image"]), model.encode_text(batch["text"])
        return F.normalize(image, dim=-1), F.normalize(text, dim=-1), model.logit_scale

    def loss(outputs, batch):
        image, text, scale = outputs
        return F.cross_entropy(scale.exp() * image @ text.T, torch.arange(6))

    refused(
        "not convex in its outputs.*logits",
        features,
        loss,
        model=clip_problem.model,
        batch=clip_problem.batch,
    )


def test_a_concave_direction_that_the_search_missed_is_refused_when_a_product_meets_it():
    curvatures = torch.linspace(0, 2, 400, dtype=torch.float64)
    curvatures[200] = -1e-4
    model = nn.Linear(1, 400, bias=False).double()
    x = torch.ones(1, 1, dtype=torch.float64)
    G = landscape.gauss_newton(
        model, forward, lambda z, _: 0.5 * (curvatures * z.square()).sum(), x
    )
    v = torch.zeros(400, dtype=torch.float64)
    v[200] = 1
    with pytest.raises(ObjectiveError, match="not convex.*-0.0001"):
        G @ v


def test_an_objective_without_a_cut_or_with_another_loss_in_it_is_refused():
    model, batch = nn.Linear(3, 4).double(), normal(5, 3)
    plain = Objective.from_closure(model, lambda model, batch: model(batch).square().mean())
    with pytest.raises(ObjectiveError, match="does not say in what its loss is convex"):
        GaussNewtonOperator(plain, select_parameters(model), batch)
    wrong = ConvexCut(
        outputs=lambda features, batch: features, convex=lambda z, batch: z.square().sum()
    )
    objective = Objective(
        lambda params, batch: call_with_parameters(model, params, forward, batch),
        lambda z, batch: z.square().mean(),
        cut=wrong,
    )
    with pytest.raises(ObjectiveError, match="two parts of the cut do not make the loss"):
        GaussNewtonOperator(objective, select_parameters(model), batch)


class OpaqueSine(SavedSine):
    @staticmethod
    def backward(ctx, gradient):
        return gradient.detach() * ctx.saved_tensors[0].cos().detach()


def test_everything_that_a_hessian_refuses_is_refused_here():
    def square(z, _):
        return z.square().mean()

    class Opaque(nn.Linear):
        def forward(self, x):
            return OpaqueSine.apply(super().forward(x))

    refused(
        r"0 \(Opaque\).*cannot be differentiated",
        forward,
        square,
        model=nn.Sequential(Opaque(3, 4)).double(),
    )
    refused(
        "active dropout",
        forward,
        square,
        model=nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.1)).double(),
    )
    refused("random", lambda model, x: model(x) + torch.randn(4, dtype=torch.float64), square)
    refused("checkpointing", lambda model, x: checkpoint(model, x, use_reentrant=False), square)
    refused("does not depend", lambda model, x: model(x).detach(), square)
    refused("one real number", forward, lambda z, _: z.square())
    refused("nan", forward, lambda z, _: z.square().mean() * float("nan"))
    # Reached behind the back of the substitution, by the outputs or by the loss.
    captured = nn.Linear(3, 4).double()
    weight = captured.weight
    refused(
        "weight.*other than through",
        lambda model, x: model(x) + weight.sum(),
        square,
        model=captured,
    )
    refused(
        "weight.*other than through",
        forward,
        lambda z, _: (z * weight.sum()).square().mean(),
        model=captured,
    )
    with pytest.raises(ValueError, match="columns must be at least 1"):
        objective = Objective.from_outputs(captured, forward, square)
        GaussNewtonOperator(objective, select_parameters(captured), normal(5, 3), columns=0)


def test_a_loss_without_a_second_derivative_by_the_outputs_is_refused():
    # sqrt at zero: the gradient by the outputs is not finite.
    refused("not finite", lambda model, x: 0 * model(x), lambda z, _: z.abs().sqrt().sum())


def test_outputs_that_are_linear_in_the_loss_give_the_zero_matrix():
    G = landscape.gauss_newton(
        nn.Linear(3, 4).double(), forward, lambda z, _: z.sum(), normal(5, 3)
    )
    assert not (G @ normal(G.n, 2)).any()
