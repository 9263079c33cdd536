"""What is found in the autograd graph of a loss: messages, names of modules, and nothing left
behind.
"""

import pytest
import torch
from torch import nn

from landscape.curvature import hessian
from landscape.curvature.guards import explanations, graph, nodes
from landscape.errors import ObjectiveError
from tests.curvature.test_preconditions import OpaqueCube, mean_square, mlp, normal


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_a_compiled_model_has_no_double_backward_and_its_products_are_right_all_the_same():
    model, batch = mlp(), normal(5, 3)

    def loss(model, batch):
        return torch.compile(model, backend="aot_eager")(batch).square().mean()

    (slope,) = torch.autograd.grad(loss(model, batch), model[0].bias, create_graph=True)
    with pytest.raises(
        ObjectiveError, match="no second derivative. Replace it, or do not compile the model"
    ):
        with explanations.explained_errors():
            torch.autograd.grad(slope.sum(), model[0].bias)
    operator = hessian(model, loss, batch)
    v = normal(operator.n)
    torch.testing.assert_close(
        operator @ v, hessian(model, mean_square, batch) @ v, rtol=1e-10, atol=1e-12
    )


def test_a_batch_changed_in_place_is_named_as_the_cause():
    batch = normal(5, 3)
    operator = hessian(mlp(), mean_square, batch)
    batch += 1
    with pytest.raises(ObjectiveError, match="was changed in place after the operator was built"):
        operator @ normal(operator.n)


def test_a_part_that_raised_does_not_shift_the_names_of_those_after_it():
    class Fragile(nn.Module):
        def forward(self, x):
            raise ValueError("not this time")

    class Cubed(nn.Module):
        def forward(self, x):
            return OpaqueCube.apply(x)

    class Cautious(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.fragile, self.cubed = nn.Linear(3, 4), Fragile(), Cubed()

        def forward(self, x):
            x = self.first(x)
            try:
                return self.fragile(x)
            except ValueError:
                return self.cubed(x)

    with pytest.raises(ObjectiveError, match=r"^cubed \(Cubed\): "):
        hessian(Cautious().double(), mean_square, normal(5, 3))


def test_the_first_fault_behind_the_loss_is_the_one_that_is_named():
    class Cubed(nn.Module):
        def forward(self, x):
            return OpaqueCube.apply(x)

    model = nn.Sequential(nn.Linear(3, 4), Cubed(), nn.Linear(4, 4), Cubed()).double()
    with pytest.raises(ObjectiveError, match=r"^3 \(Cubed\): "):
        hessian(model, mean_square, normal(5, 3))


def test_the_graph_is_inspected_once_and_not_in_every_product(monkeypatch):
    inspected = []
    judge = graph._left_the_graph
    monkeypatch.setattr(
        graph, "_left_the_graph", lambda gradient: inspected.append(0) or judge(gradient)
    )
    operator = hessian(mlp(), mean_square, normal(5, 3))
    before = len(inspected)
    operator @ normal(operator.n)
    assert 0 < before == len(inspected)


def test_every_operation_is_visited_once_however_many_ways_lead_to_it():
    x = torch.ones(3, requires_grad=True)
    for _ in range(10):
        x = x + x
    # Ten additions, the sum, and the leaf.
    assert len(list(nodes.graph_nodes(x.sum()))) == 12
