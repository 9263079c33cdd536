"""The pyhessian package, driven on this project's objectives, is the package as published."""

import gc
import importlib
import sys
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscape.curvature import HessianOperator, Objective, pyhessian_eigenpairs, select_parameters
from landscape.errors import MissingDependencyError, ObjectiveError
from landscape.linalg.operator import seeded

pyhessian = pytest.importorskip("pyhessian")


def quadratic(values, *, seed=0):
    """1/2 x^T A x with A of the given spectrum, as an objective over two tensors."""
    n = len(values)
    basis = torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=torch.float64))[0]
    A = basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T
    objective = Objective(
        forward=lambda params, batch: torch.cat([params["a"].reshape(-1), params["b"]]),
        loss=lambda x, batch: 0.5 * x @ A @ x,
    )
    return objective, {
        "a": torch.ones(2, 3, dtype=torch.float64),
        "b": torch.ones(n - 6, dtype=torch.float64),
    }


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    batch = (torch.randn(20, 4, generator=seeded(1)), torch.arange(20) % 3)
    return model, batch


def entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def test_it_finds_the_largest_eigenvalues_of_a_quadratic_with_their_signs():
    objective, params = quadratic([12.0, -9.0, 6.0, 1.0, 0.5, 0.1, -0.1, -0.5, -1.0, 0.0])
    pairs = pyhessian_eigenpairs(objective, params, None, k=3, tol=1e-8, max_iterations=1000)
    # pyhessian divides by |Hv| + 1e-6, which makes its values 2e-6 / |value| too small.
    torch.testing.assert_close(
        pairs.values, torch.tensor([12.0, -9.0, 6.0], dtype=torch.float64), rtol=1e-5, atol=0
    )
    assert pairs.values.dtype == torch.float64


def test_values_and_products_are_those_of_the_package_on_the_plain_model(classifier, monkeypatch):
    model, batch = classifier
    pairs = pyhessian_eigenpairs(
        Objective.from_closure(model, entropy), select_parameters(model), batch, k=3, seed=7
    )
    products = []
    module = importlib.import_module("pyhessian.hessian")
    own = module.hessian_vector_product
    monkeypatch.setattr(
        module, "hessian_vector_product", lambda *args: products.append(None) or own(*args)
    )
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values, _ = pyhessian.hessian(model, F.cross_entropy, data=batch, cuda=False).eigenvalues(
            top_n=3
        )
    assert pairs.values.tolist() == pytest.approx(sorted(values, key=abs, reverse=True), rel=1e-5)
    assert pairs.num_matvecs == len(products)


def test_residuals_are_those_of_the_returned_pairs_and_converged_says_so(mlp_problem):
    objective, params, batch = mlp_problem.objective, mlp_problem.params, mlp_problem.batch
    for tol, max_iterations in ((1e-3, 100), (1e-9, 3000)):
        pairs = pyhessian_eigenpairs(
            objective, params, batch, k=2, tol=tol, max_iterations=max_iterations
        )
        operator = HessianOperator(objective, params, batch)
        defects = (operator @ pairs.vectors - pairs.vectors * pairs.values).norm(
            dim=0
        ) / pairs.values.abs()
        torch.testing.assert_close(pairs.residuals, defects, rtol=1e-9, atol=1e-12)
        assert torch.equal(pairs.converged, pairs.residuals <= tol)
        torch.testing.assert_close(
            pairs.vectors.norm(dim=0), torch.ones(2, dtype=torch.float64), rtol=1e-14, atol=0
        )
    assert not pyhessian_eigenpairs(objective, params, batch, k=2, max_iterations=2).converged.any()


def test_the_l2_term_shifts_every_value(mlp_problem):
    params, batch = mlp_problem.params, mlp_problem.batch
    options = {"k": 1, "tol": 1e-10, "max_iterations": 3000}
    plain = Objective.from_closure(mlp_problem.model, mlp_problem.loss)
    decayed = Objective.from_closure(mlp_problem.model, mlp_problem.loss, weight_decay=0.3)
    lower, higher = (
        pyhessian_eigenpairs(objective, params, batch, **options).values.item()
        for objective in (plain, decayed)
    )
    assert higher - lower == pytest.approx(0.3, rel=1e-5)


def test_the_seed_decides_and_global_random_state_and_the_model_stay_as_they_were(classifier):
    model, batch = classifier
    model.train()
    objective, params = Objective.from_closure(model, entropy), select_parameters(model)
    state = torch.get_rng_state()
    one, again, other = (
        pyhessian_eigenpairs(objective, params, batch, k=2, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.values, again.values) and torch.equal(one.vectors, again.vectors)
    assert not torch.equal(one.vectors, other.vectors)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_parameters_that_are_unused_or_enter_linearly_do_not_break_the_package():
    model = nn.ModuleDict({"unused": nn.Linear(2, 2), "used": nn.Linear(3, 1)}).double()
    x = torch.randn(5, 3, generator=seeded(0), dtype=torch.float64)
    objective = Objective.from_closure(
        model, lambda model, x: model["used"](x).sum() + model["used"].weight.square().sum()
    )
    pairs = pyhessian_eigenpairs(objective, select_parameters(model), x, k=1)
    assert pairs.values.tolist() == pytest.approx([2.0], rel=1e-5)
    assert not pairs.vectors[:6].any()


def test_attention_works_as_in_the_operator(clip_problem, clip_hessian):
    objective, params, batch = clip_problem.objective, clip_problem.params, clip_problem.batch
    pairs = pyhessian_eigenpairs(objective, params, batch, k=1, tol=1e-6, max_iterations=1000)
    spectrum = torch.linalg.eigvalsh(clip_hessian)
    largest = spectrum[spectrum.abs().argmax()]
    assert pairs.values.item() == pytest.approx(largest.item(), rel=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_runs_on_a_gpu_with_a_batch_that_is_no_tensor(classifier):
    model, batch = classifier
    here = pyhessian_eigenpairs(
        Objective.from_closure(model, entropy), select_parameters(model), batch, k=1
    )
    model, batch = model.cuda(), tuple(tensor.cuda() for tensor in batch)
    there = pyhessian_eigenpairs(
        Objective.from_closure(model, entropy), select_parameters(model), batch, k=1
    )
    assert there.values.is_cuda and there.values.item() == pytest.approx(
        here.values.item(), rel=1e-3
    )


def test_it_refuses_what_the_operator_refuses(classifier):
    model, batch = classifier
    model.insert(1, nn.Dropout(0.5))
    with pytest.raises(ObjectiveError, match="active dropout"):
        pyhessian_eigenpairs(
            Objective.from_closure(model, entropy), select_parameters(model), batch, k=1
        )


@pytest.mark.parametrize(
    "options", [{"k": 0}, {"k": 46}, {"k": 1, "tol": 0.0}, {"k": 1, "max_iterations": 0}]
)
def test_numbers_out_of_range_are_refused(classifier, options):
    model, batch = classifier
    with pytest.raises(ValueError, match="must be"):
        pyhessian_eigenpairs(
            Objective.from_closure(model, entropy),
            select_parameters(model, "0.*"),
            batch,
            **options,
        )


def test_without_the_package_the_message_says_how_to_install_it(classifier, monkeypatch):
    model, batch = classifier
    monkeypatch.setitem(sys.modules, "pyhessian", None)
    with pytest.raises(MissingDependencyError, match=r"pip install pyhessian"):
        pyhessian_eigenpairs(
            Objective.from_closure(model, entropy), select_parameters(model), batch, k=1
        )


def test_neither_warnings_nor_memory_are_left_behind(classifier):
    model, batch = classifier
    alive = []

    def watched(model, batch):
        alive.append(weakref.ref(model[0].weight))
        return entropy(model, batch)

    # PyTorch says some things once per process, and an earlier test may have heard them.
    torch.set_warn_always(True)
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pyhessian_eigenpairs(
                Objective.from_closure(model, watched), select_parameters(model), batch, k=1
            )
    finally:
        gc.enable()
        torch.set_warn_always(False)
    assert not caught
    assert alive and all(leaf() is None for leaf in alive)
