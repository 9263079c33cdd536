"""Products replayed from a recording against the dense Hessian; on a CPU a stand-in for CUDA graphs
runs what was recorded.
"""

import gc
import weakref

import pytest
import torch
from torch import nn

from landscape.curvature import HessianOperator, Objective, select_parameters
from landscape.curvature.hvp import engine as engine_module
from landscape.curvature.hvp import replayed as replayed_module
from landscape.curvature.hvp import trials as trials_module
from landscape.curvature.hvp.replayed import ReplayedGraph, ReplayedTrace, StaticProduct, _stretches
from landscape.curvature.hvp.traced import forget_graphs
from landscape.curvature.hvp.traced_graph import CannotTrace
from landscape.errors import ObjectiveError
from landscape.linalg.operator import seeded
from tests.helpers.oracles import dense_hessian, relative_error
from tests.helpers.toy_words import traced, words_batch, words_problem

# Rounding of the same operations in float64.
EXACT = 1e-12


@pytest.fixture(autouse=True)
def no_graphs():
    forget_graphs()
    yield
    forget_graphs()


def vectors(operator, count=2):
    return torch.randn(operator.n, count, generator=seeded(9), dtype=torch.float64)


class Recorded:
    """Records as `cuda_graph` does, and counts; what is launched again is the function itself."""

    def __init__(self):
        self.count = 0

    def __call__(self, function, device):
        self.count += 1
        function()
        return function


def replay(operator, record):
    """Let an operator multiply by a recording of its traced graph."""
    operator.choose()
    operator._engine._strategy = ReplayedTrace(operator.engine.strategy, record=record)
    return operator


# --- one recording for many batches ---------------------------------------------------------------


def test_operators_that_share_a_recording_multiply_by_their_own_hessians_in_any_order():
    objective, model = words_problem()
    batches = [words_batch(1), words_batch(2, num_words=4), words_batch(3)]
    record = Recorded()
    operators = [replay(traced(objective, model, batch), record) for batch in batches]
    assert record.count == 1
    # The second looks up few rows: what the first left in the padding of a table must not reach its
    # product.
    for index in (0, 1, 0, 2, 1, 1, 0):
        operator, dense = (
            operators[index],
            dense_hessian(objective, select_parameters(model), batches[index]),
        )
        V = vectors(operator)
        assert relative_error(operator @ V, dense @ V) < EXACT


def test_a_recording_serves_the_next_checkpoint():
    objective, model = words_problem()
    record, batch = Recorded(), words_batch(1)
    first = replay(traced(objective, model, batch), record)
    V = vectors(first)
    before = dense_hessian(objective, select_parameters(model), batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    second = replay(traced(objective, model, batch), record)
    assert record.count == 1
    assert (
        relative_error(second @ V, dense_hessian(objective, select_parameters(model), batch) @ V)
        < EXACT
    )
    assert relative_error(first @ V, before @ V) < EXACT


def test_batches_may_be_slices_of_one_tensor():
    objective, model = words_problem()
    whole = {
        name: torch.cat([words_batch(1)[name], words_batch(2)[name]]) for name in words_batch(1)
    }
    record = Recorded()
    for start in (0, 12):
        batch = {name: tensor[start : start + 12] for name, tensor in whole.items()}
        operator = replay(traced(objective, model, batch), record)
        dense = dense_hessian(objective, select_parameters(model), batch)
        assert relative_error(operator @ vectors(operator), dense @ vectors(operator)) < EXACT
    assert record.count == 1


def test_a_recording_keeps_no_batch_alive():
    objective, model = words_problem()
    record = Recorded()
    operators = [replay(traced(objective, model, words_batch(seed)), record) for seed in (1, 2)]
    batch = weakref.ref(operators[1].engine.strategy.batch)
    graph = weakref.ref(operators[1].engine.strategy.batch.graph)
    del operators
    gc.collect()
    assert batch() is None and graph() is not None
    forget_graphs()
    gc.collect()
    assert graph() is None


# --- what is refused ------------------------------------------------------------------------------


def stuck(function, device):
    """A recording that launches nothing, so that products stay those of the first vector."""
    function()
    return lambda: None


def test_a_recording_that_is_stuck_at_its_first_vector_is_refused():
    objective, model = words_problem()
    operator = traced(objective, model, words_batch(1))
    operator.choose()
    with pytest.raises(ObjectiveError, match="traced graph, replayed.*differs"):
        ReplayedTrace(operator.engine.strategy, record=stuck)
    # The next one is not given the same.
    replay(operator, Recorded())


def test_a_recording_that_is_stuck_at_its_first_batch_is_refused_for_all(monkeypatch):
    objective, model = words_problem()
    record = Recorded()
    first = replay(traced(objective, model, words_batch(1)), record)
    monkeypatch.setattr(StaticProduct, "_load", lambda self, batch: None)
    with pytest.raises(ObjectiveError, match="differs"):
        replay(traced(objective, model, words_batch(2)), record)
    with pytest.raises(ObjectiveError, match="on another batch"):
        first @ vectors(first)
    assert record.count == 1


def test_a_pass_over_a_retained_graph_that_is_stuck_is_refused():
    objective, model = words_problem()
    operator = HessianOperator(
        objective, select_parameters(model), words_batch(1), hvp="retained", check=False
    )
    operator.choose()
    plain = operator.engine.strategy
    with pytest.raises(ObjectiveError, match="retained graph, replayed.*differs"):
        ReplayedGraph(plain, record=stuck)
    operator._engine._strategy = ReplayedGraph(plain, record=Recorded())
    dense = dense_hessian(objective, select_parameters(model), words_batch(1))
    assert relative_error(operator @ vectors(operator), dense @ vectors(operator)) < EXACT


def test_a_batch_whose_tensors_lie_otherwise_in_memory_is_refused():
    model = nn.Linear(3, 3).double().eval()
    objective = Objective.from_closure(
        model, lambda model, batch: (model(batch["x"]).tanh() * batch["y"]).sum().square()
    )
    x, y = (torch.randn(4, 3, generator=seeded(i), dtype=torch.float64) for i in range(2))
    record = Recorded()
    replay(traced(objective, model, {"x": x, "y": y}), record)
    with pytest.raises(CannotTrace, match="lies in memory"):
        replay(traced(objective, model, {"x": x, "y": x}), record)


# --- memory ---------------------------------------------------------------------------------------


def test_stretches_hold_every_tensor_once():
    base = torch.arange(60.0)
    whole = base[6:36].view(5, 6)
    tensors = [
        whole[:, :3],
        whole[:, 3:].T,
        torch.arange(4.0).expand(3, 4),
        base[50:50],
        base[40:].as_strided((3, 4), (2, 1)),
        torch.arange(3),
        torch.tensor(2.0),
    ]
    flat, layout = _stretches(tensors)
    # The halves of `whole` share theirs; the expanded tensor has four numbers; eight numbers are
    # seen by overlapping windows.
    assert sorted(layout.lengths) == [0, 1, 3, 4, 8, 30]
    buffers = [stretch.clone() for stretch in flat]
    for tensor, (number, offset) in zip(tensors, layout.places):
        assert torch.equal(
            buffers[number].as_strided(tensor.shape, tensor.stride(), offset), tensor
        )


def test_a_tensor_without_strides_is_refused():
    with pytest.raises(CannotTrace, match="sparse"):
        _stretches([torch.eye(2).to_sparse()])


# --- the choice -----------------------------------------------------------------------------------


@pytest.fixture
def replays(monkeypatch):
    """Choose as on a device that replays, with a clock by which products take the seconds that are
    put in the list.
    """
    record, seconds, now = Recorded(), [], [0.0]

    def clock(self):
        now[0] += seconds.pop(0) if seconds else 0.0
        return now[0]

    monkeypatch.setattr(engine_module, "can_replay", lambda device: True)
    monkeypatch.setattr(replayed_module, "cuda_graph", record)
    monkeypatch.setattr(trials_module.Trials, "clock", clock)
    return record, seconds


def test_a_faster_recording_is_taken_and_used_for_the_next_batches(replays):
    record, seconds = replays
    objective, model = words_problem()
    seconds += [0, 3, 0, 1]
    operator = traced(objective, model, words_batch(1))
    choice = operator.choose()
    assert (
        choice.product == "traced-replayed"
        and choice.reason == "the fastest of 2 strategies that fit"
    )
    assert [(trial.product, trial.seconds) for trial in choice.trials] == [
        ("traced", 3.0),
        ("traced-replayed", 1.0),
    ]
    assert choice.title == "double backward, traced graph, replayed as a CUDA graph"
    other = HessianOperator(
        objective, select_parameters(model), words_batch(2), hvp=choice, check=False
    )
    assert (
        other.choose() == choice
        and isinstance(other.engine.strategy, ReplayedTrace)
        and record.count == 1
    )
    for which, seed in ((operator, 1), (other, 2), (operator, 1)):
        dense = dense_hessian(objective, select_parameters(model), words_batch(seed))
        assert relative_error(which @ vectors(which), dense @ vectors(which)) < EXACT


def test_a_slower_recording_is_not_taken(replays):
    _, seconds = replays
    seconds += [0, 1, 0, 3]
    choice = traced(*words_problem(), words_batch(1)).choose()
    assert choice.product == "traced" and choice.reason == "asked for"


def test_what_cannot_be_recorded_is_noted_and_run_plainly(replays, monkeypatch):
    _, seconds = replays
    objective, model = words_problem()
    seconds += [0, 3, 0, 1]
    given = traced(objective, model, words_batch(1)).choose()

    def fails(function, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(replayed_module, "cuda_graph", fails)
    forget_graphs()
    later = HessianOperator(
        objective, select_parameters(model), words_batch(2), hvp=given, check=False
    )
    assert later.choose().product == "traced" and "capturing" in later.choice.trials[-1].failure
    dense = dense_hessian(objective, select_parameters(model), words_batch(2))
    assert relative_error(later @ vectors(later), dense @ vectors(later)) < EXACT
    forget_graphs()
    alone = traced(objective, model, words_batch(2)).choose()
    assert alone.product == "traced"
    assert (
        alone.reason
        == "asked for (traced-replayed: operation not permitted when stream is capturing)"
    )


def test_nothing_is_recorded_on_a_cpu():
    choice = traced(*words_problem(), words_batch(1)).choose()
    assert [trial.product for trial in choice.trials] == ["traced"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnAGpu:
    def test_operators_that_share_a_cuda_graph_multiply_by_their_own_hessians_in_any_order(self):
        objective, model = words_problem("cuda")
        sizes = {1: 100, 2: 4, 3: 100}
        operators = {
            seed: traced(objective, model, words_batch(seed, num, "cuda"))
            for seed, num in sizes.items()
        }
        strategies = {seed: operator.choose() for seed, operator in operators.items()}
        assert all(
            {trial.product for trial in strategy.trials} == {"traced", "traced-replayed"}
            for strategy in strategies.values()
        )
        assert not any(
            trial.failure for strategy in strategies.values() for trial in strategy.trials
        )
        for operator in operators.values():
            replayed = operator.engine.strategy
            if not isinstance(replayed, ReplayedTrace):
                operator._engine._strategy = ReplayedTrace(replayed)
        plain, copy = words_problem("cpu")
        for seed in (1, 2, 1, 3, 2, 1):
            dense = dense_hessian(plain, select_parameters(copy), words_batch(seed, sizes[seed]))
            V = vectors(operators[seed])
            assert relative_error((operators[seed] @ V.cuda()).cpu(), dense @ V) < 1e-10
