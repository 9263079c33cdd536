"""The ways of computing a product against the dense Hessian, and which of them is chosen."""

import gc
import json

import pytest
import torch
from torch import nn

from landscape.clip.objectives import contrastive_objective
from landscape.curvature import HessianOperator, Objective, hessian, select_parameters
from landscape.curvature.hvp import choice as choice_module
from landscape.curvature.hvp import trials as trials_module
from landscape.curvature.hvp.evaluation import Problem, twice_evaluated
from landscape.curvature.hvp.memory import MemoryWatch, forget_failed_backward, is_out_of_memory
from landscape.curvature.hvp.products import RebuiltGraph, RetainedGraph, TangentOfGradient
from landscape.curvature.hvp.row_chunks import RowChunks
from landscape.curvature.objective import call_with_parameters
from landscape.errors import MemoryLimitError
from landscape.linalg.operator import seeded
from landscape.towers.simba import Simba
from landscape.towers.vmamba import VMamba
from tests.conftest import scramble
from tests.helpers.oracles import relative_error
from tests.helpers.toy_clip import make_toy_clip, toy_pictures

EXACT = 1e-12
MIB = 2**20


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


@pytest.fixture(params=["clip", "mlp"])
def problem_and_dense(request):
    return request.getfixturevalue(f"{request.param}_problem"), request.getfixturevalue(
        f"{request.param}_hessian"
    )


def rowwise(num_rows=24, width=64, depth=6, dtype=torch.float64, attention=False):
    """A deep narrow network whose graph is large beside its parameters, and a loss that couples all
    rows.
    """
    layers = [
        layer
        for _ in range(depth)
        for layer in (nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
    ]
    if attention:
        layers = [nn.TransformerEncoderLayer(width, 8, width, batch_first=True) for _ in range(2)]
    model = nn.Sequential(*layers).to(dtype).eval()
    objective = Objective(
        lambda params, batch: call_with_parameters(model, params, nn.Module.__call__, batch["x"]),
        lambda f, batch: (f[:, 0] @ f[:, 0].T).logsumexp(1).mean(),
        module=model,
    )
    return objective, select_parameters(model), {"x": normal(num_rows, 40, width, dtype=dtype)}


# --- every way is the same matrix -----------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2, 5])
@pytest.mark.parametrize("product", ["retained", "rebuilt", "jvp"])
def test_every_way_multiplies_by_the_dense_hessian(problem_and_dense, product, columns):
    problem, dense = problem_and_dense
    operator = HessianOperator(
        problem.objective, problem.params, problem.batch, hvp=product, columns=columns
    )
    V = normal(operator.n, 5)
    assert relative_error(operator @ V, dense @ V) < EXACT
    assert (operator.choice.product, operator.choice.columns, operator.choice.reason) == (
        product,
        columns,
        "asked for",
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: VMamba(dims=(6, 8), depths=(1, 2), gated=False, num_classes=6),
        lambda: Simba(
            stem=3, dims=(6, 8), depths=(1, 2), mlp_ratios=(2, 1), num_states=3, num_classes=6
        ),
    ],
    ids=["VMamba", "Simba"],
)
@pytest.mark.parametrize("product", ["rebuilt", "jvp", "rows"])
def test_the_kernels_of_this_project_work_under_every_way(make, product):
    objective, params, batch = kernel_problem(make)
    V = normal(sum(tensor.numel() for tensor in params.values()), 2, seed=3)
    truth = HessianOperator(objective, params, batch, hvp="retained") @ V
    for columns in (1, 2):
        operator = HessianOperator(objective, params, batch, hvp=product, columns=columns)
        assert relative_error(operator @ V, truth) < EXACT
        assert operator.choice.product == product


def kernel_problem(make):
    tower = make().double().eval()
    scramble(tower, seed=1, scale=0.3)
    batch = {
        "image": toy_pictures(4),
        "text": torch.tensor([[1, 9, 0], [2, 3, 9], [9, 4, 4], [5, 6, 9]]),
    }
    objective, params = contrastive_objective(make_toy_clip(tower))
    return objective, params, batch


def test_a_block_in_row_chunks_and_one_of_no_vectors(mlp_problem):
    objective, params, batch = rowwise()
    operator = HessianOperator(objective, params, batch, rows=5)
    assert (operator @ torch.empty(operator.n, 0, dtype=torch.float64)).shape == (operator.n, 0)
    assert operator.choice is None


def test_a_function_with_no_rule_for_tangents_falls_to_double_backward_and_says_so():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, g):
            return 3 * g * ctx.saved_tensors[0] ** 2

    check_fall(Cube, "jvp")


def test_a_wrong_rule_for_tangents_is_found_and_double_backward_taken():
    class Cube(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)
            ctx.save_for_forward(*inputs)

        @staticmethod
        def backward(ctx, g):
            return 3 * g * ctx.saved_tensors[0] ** 2

        @staticmethod
        def jvp(ctx, tangent):
            return 2.9 * tangent * ctx.saved_tensors[0] ** 2

    check_fall(Cube, "differs from double backward by")


def check_fall(function, fragment):
    """jvp is asked for and cannot be right: double backward is taken, and the choice tells why."""
    objective = Objective(
        lambda params, batch: function.apply(params["w"] * batch), lambda f, batch: f.square().sum()
    )
    w, x = normal(4), normal(4, seed=1)
    operator = HessianOperator(objective, {"w": w}, x, hvp="jvp")
    # The loss is the sum of (w x)^6.
    torch.testing.assert_close(
        operator @ torch.ones(4, dtype=torch.float64), 30 * w**4 * x**6, rtol=1e-12, atol=0
    )
    assert operator.choice.product == "retained"
    assert (
        operator.choice.trials[0].product == "jvp" and fragment in operator.choice.trials[0].failure
    )
    assert fragment in operator.choice.reason


# --- the choice -----------------------------------------------------------------------------------


def peaks(objective, params, batch):
    """The counted peak of a product by every way, on a problem of its own."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in params.items()}
    problem = Problem(objective=objective, leaves=leaves, batch=batch)
    rows = normal(1, sum(tensor.numel() for tensor in params.values()), dtype=problem.like.dtype)
    found = {}
    for name, make in (
        ("retained", lambda: RetainedGraph(problem, twice_evaluated(problem).gradients)),
        ("rebuilt", lambda: RebuiltGraph(problem)),
        ("jvp", lambda: TangentOfGradient(problem)),
        *((r, lambda r=r: RowChunks(problem, r)) for r in (12, 6, 1)),
    ):
        with MemoryWatch(2**40) as watch:
            make().multiply(rows, torch.empty_like(rows))
        found[name] = watch.peak
    return found


def allowing(counted):
    """The memory limit that lets tensors take `counted` bytes."""
    return int(counted / choice_module.SHARE["cpu"]) + 1


def test_each_way_takes_less_memory_than_the_one_it_stands_in_for():
    found = peaks(*rowwise())
    assert (
        found["retained"] > 1.2 * found["rebuilt"]
        and found["rebuilt"] > 1.5 * found[12] > 2 * found[6] > 3 * found[1]
    )
    # Why jvp is no way out of a lack of memory.
    assert found["jvp"] > found["retained"]


@pytest.mark.parametrize(
    "expected, share",
    [("retained", 1.1), ("rebuilt", 0.95), ("rows", 0.5), ("rows", 0.2)],
    ids=["all fits", "no graph can be kept", "half the rows", "few rows"],
)
def test_the_way_that_fits_is_taken_and_is_right(expected, share):
    problem = rowwise()
    truth = HessianOperator(*problem, hvp="retained")
    v = normal(truth.n)
    limit = int(share * peaks(*problem)["retained"])
    operator = HessianOperator(*problem, max_memory=allowing(limit))
    assert operator.loss == pytest.approx(truth.loss, rel=1e-13)
    assert relative_error(operator @ v, truth @ v) < EXACT
    chosen = operator.choice
    # Rows and the rebuilt graph are both timed where both fit, and either may win.
    assert chosen.product in {expected, "rows"} and (
        expected != "retained" or chosen.product == "retained"
    )
    assert 0 < chosen.peak <= limit
    failed = [trial.product for trial in chosen.trials if trial.failure]
    assert ("retained" in failed) == (expected != "retained")
    json.dumps(chosen.as_settings())


def test_what_fits_is_timed_and_the_fastest_taken(monkeypatch):
    problem = rowwise()
    # The retained graph begins and does not fit; then two ways do.
    ticks = iter([0.0, 0.0, 3.0, 0.0, 2.0])
    operator = HessianOperator(*problem, max_memory=allowing(0.95 * peaks(*problem)["retained"]))
    monkeypatch.setattr(trials_module.Trials, "clock", lambda self: next(ticks))
    operator @ normal(operator.n)
    timed = {trial.product: trial.seconds for trial in operator.choice.trials if not trial.failure}
    assert timed == {"rebuilt": 3.0, "rows": 2.0}
    assert (
        operator.choice.product == "rows"
        and "the fastest of 2 strategies that fit" in operator.choice.reason
    )


def test_plenty_of_memory_is_not_watched_and_little_is():
    problem = rowwise()
    operators = [
        HessianOperator(*problem, max_memory=limit)
        for limit in (2**34, allowing(1.1 * peaks(*problem)["retained"]))
    ]
    for operator in operators:
        operator @ normal(operator.n)
    assert [operator.choice.peak > 0 for operator in operators] == [False, True]
    assert [operator.choice.reason for operator in operators] == ["its graph fits in memory"] * 2


@pytest.mark.parametrize("product", ["retained", "rebuilt", "jvp", "rows"])
def test_a_choice_may_be_given_to_the_next_operator_and_is_not_tried_again(product):
    objective, params, batch = rowwise()
    first = HessianOperator(objective, params, batch, hvp=product)
    v = normal(first.n)
    truth = first @ v
    second = HessianOperator(objective, params, batch, hvp=first.choice)
    assert relative_error(second @ v, truth) < EXACT
    assert second.choice == first.choice


def test_a_choice_that_took_more_than_is_free_now_is_made_again(monkeypatch):
    problem = rowwise()
    first = HessianOperator(*problem, max_memory=allowing(1.1 * peaks(*problem)["retained"]))
    v = normal(first.n)
    truth = first @ v
    monkeypatch.setattr(trials_module, "free_memory", lambda device: first.choice.peak // 2)
    second = HessianOperator(
        *problem, hvp=first.choice, max_memory=allowing(first.choice.peak // 2)
    )
    assert relative_error(second @ v, truth) < EXACT
    assert first.choice.product == "retained" and second.choice.product == "rows"


# --- running out ----------------------------------------------------------------------------------


def failing(monkeypatch, kind, error, *, after):
    """Every product of `kind` raises, once it has made `after` of them."""
    multiply, counts = kind._multiply, {"made": 0}

    def run(self, rows, out):
        if counts["made"] >= after:
            raise error
        counts["made"] += 1
        multiply(self, rows, out)

    monkeypatch.setattr(kind, "_multiply", run)


ERRORS = [
    MemoryError("short"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:125] . DefaultCPUAllocator: can't allocate memory: you "
        "asked for 1 byte"
    ),
]


@pytest.mark.parametrize("error", ERRORS, ids=["Python", "CUDA", "CPU"])
@pytest.mark.parametrize("after", [0, 2])
def test_memory_that_runs_out_at_any_product_costs_nothing_but_time(monkeypatch, error, after):
    problem = rowwise()
    V = normal(HessianOperator(*problem).n, 4)
    truth = HessianOperator(*problem, hvp="rebuilt") @ V
    operator = HessianOperator(*problem)
    failing(monkeypatch, RetainedGraph, error, after=after)
    assert relative_error(operator @ V, truth) < EXACT
    assert operator.choice.product in ("rebuilt", "rows")
    assert (
        "retained: ran out" in operator.choice.reason
        or "retained: does not fit" in operator.choice.reason
    )


def test_row_chunks_are_halved_until_they_fit(monkeypatch):
    problem = rowwise()
    truth = HessianOperator(*problem)
    v = normal(truth.n)
    operator = HessianOperator(*problem, rows=16)
    operator @ v
    forward = RowChunks._forward

    def small_only(self, batch):
        if len(batch["x"]) > 3:
            raise MemoryError("short")
        return forward(self, batch)

    monkeypatch.setattr(RowChunks, "_forward", small_only)
    assert relative_error(operator @ v, truth @ v) < EXACT
    assert operator.choice.rows == 2
    assert [trial.rows for trial in operator.choice.trials if trial.failure] == [16, 8, 4]


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    operator = HessianOperator(*rowwise())
    failing(monkeypatch, RetainedGraph, RuntimeError("shapes do not match"), after=0)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        operator @ normal(operator.n)
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and all(
        map(is_out_of_memory, ERRORS)
    )


def test_a_limit_that_nothing_meets_is_refused_in_one_line_that_says_what_was_tried():
    with pytest.raises(MemoryLimitError) as caught:
        HessianOperator(*rowwise(), max_memory=100_000)
    message = str(caught.value)
    assert "\n" not in message and caught.value.exit_code == 2
    fragments = (
        "0 MiB are allowed for the batch",
        "(24, 40, 64)",
        "retained (does not fit",
        "rows of 12",
        "rows of 1 ",
        "fewer",
    )
    for fragment in fragments:
        assert fragment in message


def test_an_opaque_loss_that_does_not_fit_is_told_how_to_come_in_rows():
    _, _, batch = rowwise()
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)).double()
    with pytest.raises(MemoryLimitError, match=r"landscape.Objective\(forward, loss\)"):
        hessian(
            model, lambda model, batch: model(batch["x"]).square().mean(), batch, max_memory=MIB
        )


@pytest.mark.parametrize("attention", [False, True], ids=["a chain", "a network with branches"])
@pytest.mark.parametrize("share", [0.8, 0.9])
def test_nothing_is_kept_alive_by_what_did_not_fit(monkeypatch, attention, share):
    """The way out of a lack of memory must not hold on to what filled it."""
    problem = rowwise(attention=attention)
    needed = peaks(*problem)
    build, watches, held = RowChunks.__init__, [], []

    class Watch(MemoryWatch):
        def __init__(self, limit):
            super().__init__(limit)
            watches.append(self)

    def note(self, *arguments):
        held.append(watches[-1].live)
        build(self, *arguments)

    monkeypatch.setattr(trials_module, "MemoryWatch", Watch)
    monkeypatch.setattr(RowChunks, "__init__", note)
    gc.collect()
    gc.disable()
    try:
        operator = HessianOperator(*problem, max_memory=allowing(share * needed["rebuilt"]))
        operator @ normal(operator.n)
    finally:
        gc.enable()
    assert operator.choice.product == "rows"
    assert held and max(*held, operator.choice.held) < 0.05 * needed["retained"]


def test_a_backward_pass_that_was_stopped_is_let_go():
    x = torch.ones(1000, 10, requires_grad=True)
    held = []
    for allowed in range(4000, 200_000, 8000):
        watch = MemoryWatch(2**40)
        with pytest.raises(MemoryError), watch:
            branches = [branch.exp().sin() for branch in (x * torch.arange(10.0)).unbind(1)]
            gradient = torch.autograd.grad(
                torch.stack(branches).prod(0).sum(), x, create_graph=True
            )[0]
            watch.limit = watch.live + allowed
            torch.autograd.grad(gradient, x, torch.ones_like(x))
        del branches, gradient
        held.append(watch.live)
        forget_failed_backward(x.device)
        assert watch.live == 0
    assert any(held), "nothing was held, so there is nothing to forget any more"


@pytest.mark.parametrize(
    "options, fragment",
    [
        ({"hvp": "fast"}, "must be one of auto, retained, rebuilt, jvp, rows"),
        ({"hvp": "jvp", "rows": 3}, "takes no chunks"),
        ({"max_memory": 0}, "max_memory must be at least 1"),
        ({"columns": 0}, "columns must be at least 1"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(mlp_problem, options, fragment):
    with pytest.raises(ValueError, match=fragment):
        HessianOperator(mlp_problem.objective, mlp_problem.params, mlp_problem.batch, **options)


# --- on a GPU -------------------------------------------------------------------------------------

on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_cuda(dtype):
    torch.manual_seed(0)
    objective, params, batch = rowwise(dtype=dtype)
    model = objective.module.cuda()
    return objective, select_parameters(model), {"x": batch["x"].cuda()}


@pytest.mark.parametrize("product", ["auto", "retained", "rebuilt", "jvp", "rows"])
@pytest.mark.parametrize("columns", [None, 1, 3])
class TestOnAGpu:
    pytestmark = on_a_gpu

    def test_every_way_agrees_with_the_cpu(self, product, columns):
        torch.manual_seed(0)
        truth = HessianOperator(*rowwise(), hvp="retained")
        V = normal(truth.n, 9)
        operator = HessianOperator(*on_cuda(torch.float64), hvp=product, columns=columns)
        assert relative_error((operator @ V.cuda()).cpu(), truth @ V) < 1e-10
        # Again, in the way that was chosen, and one by one.
        assert (
            relative_error(torch.stack([operator @ v for v in V.cuda().T], dim=1).cpu(), truth @ V)
            < 1e-10
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_recorded_pass_is_tried_on_a_gpu_and_its_outcome_noted():
    operator = HessianOperator(*on_cuda(torch.float32))
    operator @ normal(operator.n, dtype=torch.float32).cuda()
    assert {trial.product for trial in operator.choice.trials} == {"retained", "replayed"}
