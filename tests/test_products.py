"""The ways of computing a product against the dense Hessian, and which of them is chosen."""

import copy
import gc
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import contrastive_loss
from oracles import relative_error
from toy_clip import make_toy_clip, toy_pictures
from torch import nn

from landscape.curvature import HessianOperator, Objective, hessian, select_parameters
from landscape.curvature import choice as choice_module
from landscape.curvature.evaluation import Problem, plain_arithmetic, twice_evaluated
from landscape.curvature.memory import MemoryWatch, free_memory, is_out_of_memory
from landscape.curvature.objective import call_with_parameters
from landscape.curvature.products import RebuiltGraph, RetainedGraph, TangentOfGradient
from landscape.curvature.row_chunks import RowChunks
from landscape.errors import MemoryLimitError, ObjectiveError
from landscape.linalg.operator import seeded
from landscape.towers.simba import Simba
from landscape.towers.vmamba import VMamba

EXACT = 1e-12
MIB = 2**20


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


@pytest.fixture(params=["clip", "mlp"])
def problem_and_dense(request):
    return request.getfixturevalue(f"{request.param}_problem"), request.getfixturevalue(f"{request.param}_hessian")


def rowwise(num_rows=24, width=64, depth=6, dtype=torch.float64):
    """A deep narrow network whose graph is large beside its parameters, and a loss that couples all rows."""
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))]
    model = nn.Sequential(*layers).to(dtype)
    objective = Objective(
        lambda params, batch: call_with_parameters(model, params, nn.Module.__call__, batch["x"]),
        lambda f, batch: (f[:, 0] @ f[:, 0].T).logsumexp(1).mean(),
        module=model,
    )
    return objective, select_parameters(model), {"x": normal(num_rows, 40, width, dtype=dtype)}


# --- every way is the same matrix -------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2, 5])
@pytest.mark.parametrize("product", ["retained", "rebuilt", "jvp"])
def test_every_way_multiplies_by_the_dense_hessian(problem_and_dense, product, columns):
    problem, dense = problem_and_dense
    operator = HessianOperator(problem.objective, problem.params, problem.batch, product=product, columns=columns)
    V = normal(operator.n, 5)
    assert relative_error(operator @ V, dense @ V) < EXACT
    assert (operator.choice.product, operator.choice.columns, operator.choice.reason) == (product, columns, "asked for")


@pytest.mark.parametrize("make", [VMamba, Simba])
@pytest.mark.parametrize("product", ["rebuilt", "jvp", "rows"])
def test_the_kernels_of_this_project_work_under_every_way(make, product):
    objective, params, batch = kernel_problem(make)
    V = normal(sum(tensor.numel() for tensor in params.values()), 2, seed=3)
    truth = HessianOperator(objective, params, batch, product="retained") @ V
    for columns in (1, 2):
        operator = HessianOperator(objective, params, batch, product=product, columns=columns)
        assert relative_error(operator @ V, truth) < EXACT
        assert operator.choice.product == product


def kernel_problem(make):
    from landscape.clip.objectives import contrastive_objective

    small = {
        VMamba: dict(depths=(1, 1, 1, 1), dims=(4, 4, 4, 4)),
        Simba: dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)),
    }[make]
    tower = make(img_size=32, num_classes=6, **small).double().eval()
    model = make_toy_clip(tower)
    batch = {"image": toy_pictures(4, side=32), "text": torch.tensor([[1, 9, 0], [2, 3, 9], [9, 4, 4], [5, 6, 9]])}
    objective, params = contrastive_objective(model)
    return objective, params, batch
