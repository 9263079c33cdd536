"""Several eigenproblems solved in lockstep, against dense Hessians and against runs that are
alone.
"""

import threading

import pytest
import torch

from landscape.curvature import HessianOperator, Objective, select_parameters
from landscape.curvature.hvp import lockstep
from landscape.curvature.hvp.lockstep import batches_that_fit, depends_on_batch, solve_in_lockstep
from landscape.curvature.hvp.traced import forget_graphs
from landscape.linalg import eigsh
from landscape.linalg.operator import seeded
from tests.conftest import contrastive_loss
from tests.helpers.oracles import dense_hessian
from tests.helpers.toy_words import traced, words_batch, words_problem

pytestmark = pytest.mark.timeout(120)

# Rounding of the same sums in another order, in float64, relative to the largest eigenvalue.
EXACT = 1e-12


@pytest.fixture(scope="module")
def words():
    """Four operators of one model, the second of which looks up few rows."""
    forget_graphs()
    objective, model = words_problem()
    batches = [words_batch(1), words_batch(2, num_words=4), words_batch(3), words_batch(4)]
    operators = [traced(objective, model, batch) for batch in batches]
    for operator in operators:
        operator.choose()
    yield objective, model, batches, operators
    forget_graphs()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [
        thread.name for thread in threading.enumerate() if thread.name.startswith("lockstep-")
    ]


@pytest.fixture
def calls(monkeypatch):
    """The numbers of vectors in every vmapped call."""
    sizes, plain = [], lockstep._Meeting._multiply_together

    def counted(self, call, rows):
        sizes.append(len(rows))
        return plain(self, call, rows)

    monkeypatch.setattr(lockstep._Meeting, "_multiply_together", counted)
    return sizes


def solve(index, operator):
    # Of another length for each, so that they end one after the other.
    return eigsh(operator, 2 + index, "LM", tol=1e-6, seed=index)


def assert_same(pairs, alone):
    size = alone.values.abs().max()
    assert torch.allclose(pairs.values, alone.values, rtol=0, atol=EXACT * size)
    assert torch.allclose(pairs.residuals, alone.residuals, rtol=0, atol=EXACT)
    assert torch.equal(pairs.converged, alone.converged)
    assert (pairs.num_matvecs, pairs.settled, pairs.copies_checked) == (
        alone.num_matvecs,
        alone.settled,
        alone.copies_checked,
    )
    assert pairs.checked == alone.checked
    assert torch.allclose(pairs.quadrature.nodes, alone.quadrature.nodes, rtol=0, atol=1e-9 * size)


# --- results --------------------------------------------------------------------------------------


def test_results_are_those_of_runs_alone_and_of_the_dense_hessian(words, calls):
    objective, model, batches, operators = words
    alone = [solve(index, operator) for index, operator in enumerate(operators)]
    together = solve_in_lockstep(operators, solve)
    for pairs, single, batch in zip(together, alone, batches):
        assert_same(pairs, single)
        values = torch.linalg.eigvalsh(dense_hessian(objective, select_parameters(model), batch))
        truth = values[values.abs().argsort(descending=True)][: len(pairs.values)]
        assert pairs.converged.all() and torch.allclose(pairs.values, truth, rtol=1e-10)
    # The first call is the comparison with the plain products; all take part until the first has
    # ended, the last is alone.
    lengths = sorted(single.num_matvecs for single in alone)
    assert calls == [4] + [sum(length > step for length in lengths) for step in range(lengths[-2])]
    assert not any(
        trial.product == "lockstep" for operator in operators for trial in operator.choice.trials
    )


def test_coupled_rows_of_a_clip_and_an_l2_term(clip_problem, calls):
    forget_graphs()
    objective = Objective.from_closure(clip_problem.model, contrastive_loss, weight_decay=0.1)
    params = select_parameters(
        clip_problem.model, ["token_embedding*", "text_projection", "visual.*ln*", "logit_scale"]
    )

    def batch(seed):
        generator = seeded(seed)
        text = torch.randint(1, 19, (3, 5), generator=generator)
        text[:, 4] = 19
        return {
            "image": torch.randn(3, 3, 8, 8, generator=generator, dtype=torch.float64),
            "text": text,
        }

    batches = batch(1), batch(2)
    operators = [
        HessianOperator(objective, params, one, hvp="traced", check=False) for one in batches
    ]
    together = solve_in_lockstep(
        operators, lambda index, operator: eigsh(operator, 2, "LA", tol=1e-6, seed=index)
    )
    assert len(calls) > 5
    for pairs, one in zip(together, batches):
        truth = torch.linalg.eigvalsh(dense_hessian(objective, params, one)).flip(0)[:2]
        assert pairs.converged.all() and torch.allclose(pairs.values, truth, rtol=1e-10)


def test_the_first_product_is_checked_as_when_alone(calls):
    forget_graphs()
    objective, model = words_problem()
    operators = [
        HessianOperator(objective, select_parameters(model), words_batch(seed), hvp="traced")
        for seed in (1, 2)
    ]
    for index, (pairs, operator) in enumerate(zip(solve_in_lockstep(operators, solve), operators)):
        assert operator.spot_check is not None and pairs.checked == str(operator.spot_check)
        assert_same(pairs, solve(index, operator))


def test_one_operator_and_none(words):
    operators = words[3]
    assert solve_in_lockstep([], solve) == []
    assert_same(*solve_in_lockstep(operators[:1], solve), solve(0, operators[0]))


def test_blocks_of_vectors_and_runs_without_any(words, calls):
    operators = words[3][:3]

    def work(index, operator):
        V = torch.randn(operator.n, index, generator=seeded(index), dtype=torch.float64)
        return operator @ V, V

    for (products, V), operator in zip(solve_in_lockstep(operators, work), operators):
        assert torch.allclose(products, operator @ V, rtol=0, atol=1e-14)
    # The second and third hand in their first vectors together; the last vector is alone.
    assert calls == [3, 2]


def test_a_run_may_multiply_by_the_operators_of_others(words):
    first, second = words[3][:2]
    ones = torch.ones(first.n, dtype=torch.float64)
    expected = first @ ones, second @ ones
    for products in solve_in_lockstep(
        [first, second], lambda index, operator: (first @ ones, second @ ones)
    ):
        assert all(
            torch.allclose(product, truth, rtol=0, atol=1e-14)
            for product, truth in zip(products, expected)
        )
    for product in solve_in_lockstep([first, first], lambda index, operator: operator @ ones):
        assert torch.allclose(product, expected[0], rtol=0, atol=1e-14)


def test_one_run_at_a_time(words):
    running, order = [], []

    def work(index, operator):
        for step in range(3):
            assert not running
            running.append(index)
            order.append((step, index))
            threading.Event().wait(0.002)
            running.remove(index)
            operator @ torch.ones(operator.n, dtype=torch.float64)
        return torch.is_grad_enabled()

    with torch.no_grad():
        assert solve_in_lockstep(words[3], work) == [False] * 4
    assert order == [(step, index) for step in range(3) for index in range(4)]


# --- errors ---------------------------------------------------------------------------------------


def test_an_exception_in_a_run_costs_that_run_alone(words):
    operators = words[3]

    def work(index, operator):
        if index == 1:
            raise KeyError("at once")
        if index == 2:
            operator @ torch.ones(operator.n, dtype=torch.float64)
            raise ValueError("after a product")
        return solve(index, operator)

    first, second, third, fourth = solve_in_lockstep(operators, work)
    assert (
        isinstance(second, KeyError)
        and isinstance(third, ValueError)
        and "after a product" in str(third)
    )
    assert_same(first, solve(0, operators[0]))
    assert_same(fourth, solve(3, operators[3]))


def failing(monkeypatch, error, *, at):
    """Let a vmapped call raise."""
    plain, count = lockstep._Meeting._multiply_together, [0]

    def call(self, *args):
        count[0] += 1
        if count[0] == at:
            raise error
        return plain(self, *args)

    monkeypatch.setattr(lockstep._Meeting, "_multiply_together", call)


def test_an_exception_in_a_call_reaches_all_that_wait_for_it(words, monkeypatch):
    operators = words[3]
    lengths = [solve(index, operator).num_matvecs for index, operator in enumerate(operators)]
    # After the first has ended: its result stays.
    failing(monkeypatch, RuntimeError("an illegal instruction"), at=2 + min(lengths))
    results = solve_in_lockstep(operators, solve)
    ended = [index for index, length in enumerate(lengths) if length == min(lengths)]
    for index, result in enumerate(results):
        if index in ended:
            assert_same(result, solve(index, operators[index]))
        else:
            assert isinstance(result, RuntimeError) and "illegal" in str(result)
    # The operators go on as before.
    assert all(operator.choice.product == "traced" for operator in operators)


def noted(operator):
    return [trial.failure for trial in operator.choice.trials if trial.product == "lockstep"]


def fresh_operators():
    forget_graphs()
    objective, model = words_problem()
    return [traced(objective, model, words_batch(seed)) for seed in (1, 2)]


def test_where_memory_runs_out_each_goes_on_alone(monkeypatch):
    operators = fresh_operators()
    failing(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), at=3)
    for index, pairs in enumerate(solve_in_lockstep(operators, solve)):
        assert (
            noted(operators[index]) == ["CUDA out of memory"]
            and operators[index].choice.product == "traced"
        )
        assert_same(pairs, solve(index, operators[index]))
    # Memory may be there next time.
    monkeypatch.undo()
    later = [traced(*words_problem(), words_batch(seed)) for seed in (3, 4)]
    solve_in_lockstep(later, solve)
    assert later[0].engine.strategy.batch.graph is operators[0].engine.strategy.batch.graph
    assert noted(later[0]) == []


def test_a_graph_that_cannot_be_vmapped_is_noted_and_not_tried_again(monkeypatch):
    operators, tries = fresh_operators(), []

    def fails(self, saved):
        tries.append(1)
        raise RuntimeError("no batching rule")

    monkeypatch.setattr(lockstep._Meeting, "_vmapped", fails)
    for _ in range(2):
        for index, pairs in enumerate(solve_in_lockstep(operators, solve)):
            assert noted(operators[index]) == ["no batching rule"]
            assert_same(pairs, solve(index, operators[index]))
    assert len(tries) == 1


def test_a_vmapped_graph_that_is_wrong_is_refused(monkeypatch):
    operators, plain = fresh_operators(), lockstep._Meeting._vmapped

    def wrong(self, saved):
        call = plain(self, saved)
        return lambda *tensors: [product * (1 + 1e-8) for product in call(*tensors)]

    monkeypatch.setattr(lockstep._Meeting, "_vmapped", wrong)
    for index, pairs in enumerate(solve_in_lockstep(operators, solve)):
        assert "differs from double backward by 1.0e-08" in noted(operators[index])[0]
        assert_same(pairs, solve(index, operators[index]))


def test_an_interruption_ends_all_runs(words, monkeypatch):
    operators = words[3]
    failing(monkeypatch, KeyboardInterrupt(), at=4)
    strategies = [operator.engine.strategy for operator in operators]
    with pytest.raises(KeyboardInterrupt):
        solve_in_lockstep(operators, solve)
    assert [operator.engine.strategy for operator in operators] == strategies
    assert all(
        operator.engine.columns is None or operator.engine.columns == 1 for operator in operators
    )


# --- what goes together ---------------------------------------------------------------------------


def test_operators_that_share_no_graph_are_refused(words):
    objective, model, batches, operators = words
    retained = HessianOperator(
        objective, select_parameters(model), batches[0], hvp="retained", check=False
    )
    with pytest.raises(ValueError, match="is traced, got double backward, retained graph"):
        solve_in_lockstep([operators[0], retained], solve)
    shorter = traced(objective, model, {name: tensor[:6] for name, tensor in batches[0].items()})
    with pytest.raises(ValueError, match="share a traced graph"):
        solve_in_lockstep([operators[0], shorter], solve)


def test_operators_of_other_weights_are_refused(words):
    objective, model, batches, _ = words
    first = traced(objective, model, batches[0])
    params = {name: tensor.detach().clone() for name, tensor in select_parameters(model).items()}
    params["mix.2.weight"] = params["mix.2.weight"].flip(0)
    other = HessianOperator(objective, params, batches[1], hvp="traced", check=False)
    with pytest.raises(ValueError, match="same weights"):
        solve_in_lockstep([first, other], solve)


def test_what_depends_on_the_batch_is_told_from_what_does_not(words):
    operators = words[3]
    first, other = (operator.engine.strategy for operator in operators[:2])
    moves = depends_on_batch(first)
    same = [torch.equal(a, b) for a, b in zip(first.batch.saved, other.batch.saved)]
    assert [equal for equal, moving in zip(same, moves) if not moving] == [True] * (
        len(moves) - sum(moves)
    )
    assert not all(equal for equal, moving in zip(same, moves) if moving)
    # The weights of the second layer are needed, and shared.
    weight = operators[0].params["mix.2.weight"]
    shared = [
        tensor
        for tensor, moving in zip(first.batch.saved, moves)
        if not moving and tensor.ndim == 2
    ]
    assert any(torch.equal(tensor, weight) or torch.equal(tensor.T, weight) for tensor in shared)


def test_as_many_batches_as_memory_holds(words):
    operator = words[3][0]
    strategy = operator.engine.strategy
    saved = sum(
        t.numel() * t.element_size()
        for t, moving in zip(strategy.batch.saved, depends_on_batch(strategy))
        if moving
    )
    each = 3 * saved + 30 * 8 * (operator.n - operator.num_unused)
    # Of what is free, two fifths are taken on a CPU.
    assert batches_that_fit(operator, num_vectors=30, free=int(7.5 * each / 0.4)) == 7
    assert batches_that_fit(operator, num_vectors=30, free=1) == 1
    assert batches_that_fit(operator, num_vectors=30) > 100


def test_a_recording_of_a_call_serves_the_next_lot(monkeypatch, calls):
    operators = fresh_operators()
    later = [traced(*words_problem(), words_batch(seed)) for seed in (3, 4)]
    recordings = []

    def record(function, device):
        recordings.append(function)
        function()
        return function

    monkeypatch.setattr(lockstep, "can_replay", lambda device: True)
    monkeypatch.setattr(lockstep.replayed, "cuda_graph", record)
    for lot in (operators, later, operators):
        for index, pairs in enumerate(solve_in_lockstep(lot, solve)):
            assert_same(pairs, solve(index, lot[index]))
            assert noted(lot[index]) == []
    assert len(recordings) == 1 and len(calls) > 10
    # Buffers that keep the batches of before.
    monkeypatch.setattr(lockstep.StaticProduct, "_load", lambda self, batch: None)
    for index, pairs in enumerate(solve_in_lockstep(later, solve)):
        assert "differs" in noted(later[index])[0]
        assert_same(pairs, solve(index, later[index]))


def test_a_call_that_cannot_be_recorded_runs_as_it_is(monkeypatch, calls):
    operators = fresh_operators()

    def fails(function, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(lockstep, "can_replay", lambda device: True)
    monkeypatch.setattr(lockstep.replayed, "cuda_graph", fails)
    for index, pairs in enumerate(solve_in_lockstep(operators, solve)):
        assert_same(pairs, solve(index, operators[index]))
    assert len(calls) > 5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_results_on_a_gpu_are_those_of_a_cpu(words, calls):
    _, _, _, operators = words
    objective, model = words_problem("cuda")
    batches = [
        words_batch(1, 100, "cuda"),
        words_batch(2, 4, "cuda"),
        words_batch(3, 100, "cuda"),
        words_batch(4, 100, "cuda"),
    ]
    lot = [traced(objective, model, batch) for batch in batches]
    together = solve_in_lockstep(lot, solve)
    assert len(calls) > 5 and not any(map(noted, lot))
    for index, pairs in enumerate(together):
        alone = solve(index, operators[index])
        assert torch.allclose(
            pairs.values.cpu(),
            alone.values.cpu(),
            rtol=0,
            atol=1e-10 * float(alone.values.abs().max()),
        )
        assert pairs.converged.all()
