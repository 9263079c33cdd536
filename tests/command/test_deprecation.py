"""Old names work, warn on the line that uses them, and contradict nothing."""

import pkgutil
import re
import warnings

import pytest
import torch
from torch import nn

import landscape
from landscape import curvature, pipeline, store
from landscape.curvature.modules import ModuleSpectrum
from landscape.deprecation import renamed_keyword
from landscape.linalg import DenseOperator


@renamed_keyword("before", "after")
def doubled(factor: int, *, after: int) -> int:
    return factor * after


def test_an_old_keyword_is_the_new_one_and_warns_where_it_is_used():
    with pytest.warns(DeprecationWarning, match="^before= is an old name; use after=.$") as caught:
        assert doubled(2, before=3) == 6
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert doubled(2, after=3) == 6


def test_both_names_at_once_are_refused():
    with pytest.raises(TypeError, match="takes after or its old name before, not both"):
        doubled(2, before=3, after=3)


def test_a_report_names_its_faulty_modules_by_the_old_name_too():
    class Wrong(torch.autograd.Function):
        """A square whose derivative is that of the identity."""

        @staticmethod
        def forward(ctx, x):
            return x * x

        @staticmethod
        def backward(ctx, grad):
            return grad

    class Faulty(nn.Module):
        def forward(self, x):
            return Wrong.apply(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Faulty(), nn.Linear(4, 1)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    report = landscape.audit(model, lambda model, x: model(x).square().mean(), x)
    assert "1 (Faulty)" in report.faulty_modules
    with pytest.warns(DeprecationWarning, match="use faulty_modules") as caught:
        assert report.blamed == report.faulty_modules
    assert caught[0].filename == __file__


def test_a_spectrum_of_a_module_has_its_eigenpairs_by_the_old_name_too():
    eigenpairs = landscape.eigsh(DenseOperator(torch.diag(torch.tensor([3.0, -2.0, 1.0, 0.5]))), 1)
    spectrum = ModuleSpectrum("head", 4, eigenpairs)
    with pytest.warns(DeprecationWarning, match="use eigenpairs") as caught:
        assert spectrum.pairs is eigenpairs
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [(pipeline, "ProductSettings", "HvpSettings"), (store, "Plan", "StoreContents")],
)
def test_a_class_has_its_old_name_too(module, old, new):
    with pytest.warns(DeprecationWarning, match=f"{old} is an old name; use .*{new}") as caught:
        assert getattr(module, old) is getattr(module, new)
    assert caught[0].filename == __file__
    with pytest.raises(AttributeError, match="has no attribute 'Product'"):
        module.Product  # noqa: B018


def operators(model, loss, x, **options):
    """Everything that takes `hvp`, built and used."""
    objective = landscape.Objective.from_closure(model, loss)
    params = curvature.select_parameters(model)
    yield landscape.hessian(model, loss, x, **options)
    yield curvature.hessian(model, loss, x, **options)
    yield landscape.HessianOperator(objective, params, x, **options)
    yield curvature.HessianBlocks(objective, params, x, {"0": ("0.weight",)}, **options)


def test_operators_take_how_products_are_computed_by_the_old_name_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(5, 3, dtype=torch.float64)

    def loss(model, x):
        return model(x).square().mean()

    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        for operator in operators(model, loss, x, hvp="rebuilt"):
            if isinstance(operator, curvature.HessianOperator):
                assert operator.choose().product == "rebuilt"
    with pytest.warns(DeprecationWarning, match="^product= is an old name; use hvp=.$") as caught:
        for operator in operators(model, loss, x, product="rebuilt"):
            if isinstance(operator, curvature.HessianOperator):
                assert operator.choose().product == "rebuilt"
    ours = [warning for warning in caught if "product=" in str(warning.message)]
    assert len(ours) == 4 and {warning.filename for warning in ours} == {__file__}
    with pytest.raises(ValueError, match="hvp must be one of auto, retained"):
        landscape.hessian(model, loss, x, hvp="fast")


def test_names_of_loss_surfaces_are_found_in_their_old_room_with_a_warning():
    import landscape.curvature
    import landscape.surface

    with pytest.warns(DeprecationWarning, match=r"use landscape\.surface\.LossSlice"):
        assert landscape.curvature.LossSlice is landscape.surface.LossSlice
    with pytest.raises(AttributeError, match="no attribute 'LossSlize'"):
        _ = landscape.curvature.LossSlize


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("ProductChoice", "landscape.curvature.hvp.HvpChoice"),
        ("HvpChoice", "landscape.curvature.hvp.HvpChoice"),
        ("call_with_parameters", "landscape.curvature.objective.call_with_parameters"),
        ("check_twice_differentiable", "landscape.curvature.guards.check_twice_differentiable"),
        ("squared_norm", "landscape.curvature.objective.squared_norm"),
    ],
)
def test_names_that_left_the_face_of_curvature_warn_and_say_where_they_are(name, place):
    with pytest.warns(DeprecationWarning, match=f"use {re.escape(place)}.$") as caught:
        moved = getattr(curvature, name)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert moved is pkgutil.resolve_name(place)
    assert name not in curvature.__all__


@pytest.mark.parametrize(
    "statement",
    [
        "from landscape.curvature import ProductChoice",
        "from landscape.curvature import LossSlice",
        "from landscape.pipeline import ProductSettings",
        "import landscape.curvature; landscape.curvature.squared_norm",
    ],
)
def test_a_statement_with_an_old_name_warns_once(statement):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(statement, "users_own.py", "exec"), {})
    assert [(each.category, each.filename) for each in caught] == [
        (DeprecationWarning, "users_own.py")
    ]
