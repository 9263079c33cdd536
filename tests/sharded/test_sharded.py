"""Exact products, solvers and certificates of one model over several processes, against one process
and a dense Hessian.

The processes meet by gloo. All of them are started once, and each does everything that is tested
here.
"""

import os
import subprocess

import pytest
import torch

import landscape
from landscape.curvature import FiniteDifferenceOperator, HessianOperator, gradient
from landscape.errors import ObjectiveError
from tests.helpers.folders import ROOT
from tests.helpers.oracles import dense_hessian
from tests.helpers.processes import helper_command
from tests.helpers.sharded_cases import (
    ALONE,
    CASES,
    OF_ONE_ROW,
    REPEATED,
    SOLVED,
    VARIANTS,
    OnceSine,
    directions,
    is_done,
    lendable,
    next_word_loss,
    solved,
    tokens,
    trained_words,
    words,
    words_through,
)

# Ways to products with the Hessian of "words".
OF_WORDS = [
    way for way in VARIANTS if way not in ("at other values", "gpt2 on uneven rows", *OF_ONE_ROW)
]


def measured(stage, names, sizes=(2, 3)):
    """Each name on each number of processes, those that are not done every time as slow tests."""
    return [
        pytest.param(
            name,
            size,
            marks=() if is_done(size, stage, name, every_time=True) else pytest.mark.slow,
        )
        for name in names
        for size in sizes
    ]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What every process saw, by number of processes, stage and name."""
    runs = {}

    def of(size, stage, name):
        which = "every time" if is_done(size, stage, name, every_time=True) else "slow"
        if which not in runs:
            runs[which] = started(which, tmp_path_factory.mktemp("processes"))
        return [process[stage][name] for process in runs[which][size]]

    return of


def started(which, folder):
    place = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = helper_command("sharded_cases", folder, which)
    subprocess.run(command, env={**os.environ, **place}, timeout=550, check=True)
    logs = sorted(folder.glob("*.log"))
    for log in logs:
        assert log.with_suffix(".pt").exists(), log.read_text()[-3000:]
    return {
        size: [torch.load(folder / f"{size}.{rank}.pt") for rank in range(size)]
        for size in (1, 2, 3)
    }


@pytest.fixture(scope="module")
def alone():
    """The operator of each case in one process, with all rows."""
    operators = {}

    def made(name):
        if name not in operators:
            case = CASES[name]()
            operators[name] = HessianOperator(case.objective, case.params, case.batch)
        return operators[name]

    return made


def relative(value, truth):
    return float((value - truth).norm() / truth.norm())


# --- products -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), measured("products", CASES))
def test_products_over_processes_are_those_of_one(name, size, seen, alone):
    A, case, processes = alone(name), CASES[name](), seen(size, "products", name)
    expected = A @ directions(A.n)
    slope = gradient(case.objective, A.params, case.batch)
    for product in processes:
        # Sums over rows and processes are taken in another order: 8e-16 was the most seen.
        assert relative(product["products"], expected) < 1e-14
        assert relative(product["gradient"], slope) < 1e-13 and product["loss"] == pytest.approx(
            A.loss, rel=1e-14
        )
        lengths = [
            *torch.linalg.vector_norm(directions(A.n), dim=0).tolist(),
            float(directions(A.n).norm()),
        ]
        assert product["norms"] == pytest.approx(lengths, rel=1e-14)
        assert product["again"] and product["num_unused"] == A.num_unused
        assert product["checked"].startswith("operator checked: product within")
    assert len({product["checked"] for product in processes}) == 1


@pytest.mark.parametrize(("name", "size"), measured("products", ["one block of words"], sizes=(2,)))
def test_products_are_those_of_the_dense_hessian(name, size, seen):
    case = CASES[name]()
    dense = dense_hessian(case.objective, case.params, case.batch)
    for process in seen(size, "products", name):
        assert relative(process["products"], dense @ directions(len(dense))) < 1e-14


@pytest.mark.parametrize(("name", "size"), measured("products", CASES))
def test_each_entry_of_a_vector_is_in_one_process(name, size, seen, alone):
    products = seen(size, "products", name)
    places = torch.cat([product["entries"] for product in products])
    assert torch.equal(places.sort().values, torch.arange(alone(name).n))
    assert max(product["num_local"] for product in products) < alone(name).n
    support = alone(name).support
    if support is None:
        assert all(product["support"] is None for product in products)
    else:
        here = torch.cat([product["entries"][product["support"]] for product in products])
        assert torch.equal(here.sort().values, support)


@pytest.mark.parametrize(("way", "size"), measured("variants", OF_WORDS))
def test_other_ways_come_to_the_same_products(way, size, seen, alone):
    expected = alone("words") @ directions(alone("words").n)
    assert all(relative(products, expected) < 1e-14 for products in seen(size, "variants", way))


@pytest.mark.parametrize(("way", "size"), measured("variants", ["gpt2 on uneven rows"], sizes=(2,)))
def test_processes_may_have_chunks_of_tokens_or_all_at_once(way, size, seen, alone):
    expected = alone("gpt2") @ directions(alone("gpt2").n)
    assert all(relative(products, expected) < 1e-14 for products in seen(size, "variants", way))


@pytest.mark.parametrize(("way", "size"), measured("variants", OF_ONE_ROW))
def test_a_process_with_one_row_reads_weights_that_others_keep_copies_of(way, size, seen):
    case = OF_ONE_ROW[way][0]()
    A = HessianOperator(case.objective, case.params, case.batch)
    expected = A @ directions(A.n)
    assert all(relative(products, expected) < 1e-14 for products in seen(size, "variants", way))


@pytest.mark.parametrize(("name", "size"), measured("lent", ["read alone"]))
def test_weights_that_one_process_reads_are_lent_by_all(name, size, seen):
    weights, (*others, last) = lendable(), seen(size, "lent", name)
    assert torch.equal(last["beside a short sum"], weights["up"])
    assert torch.equal(last["beside a long sum"], weights["down"])
    assert torch.equal(last["beside the end"], weights["up"])
    assert all("the weights cannot be read" in process["failed"] for process in (*others, last))
    assert torch.equal(last["after a failure"], 2 * weights["up"])
    for process in (*others, last):
        # What the others do meanwhile comes to the same as ever.
        assert process["short sum"] == [sum(range(size))] * 3
        assert process["long sum"] == [sum(range(size))] * 50
        for weight, whole in weights.items():
            assert torch.equal(process[f"{weight}, in another order"], whole)


@pytest.mark.parametrize(("name", "size"), measured("lent", ["of two evaluations"]))
def test_weights_of_two_evaluations_are_never_mixed(name, size, seen):
    for process in seen(size, "lent", name):
        assert torch.equal(process["first"], lendable()["up"])
        assert torch.equal(process["second"], 3 * lendable()["up"])


@pytest.mark.parametrize(("way", "size"), measured("variants", ["at other values"]))
def test_products_at_other_values_are_of_the_weights_there(way, size, seen, alone):
    case = CASES["words"]()
    params = {name: 1.5 * tensor for name, tensor in case.params.items()}
    expected = HessianOperator(case.objective, params, case.batch) @ directions(alone("words").n)
    assert all(relative(products, expected) < 1e-14 for products in seen(size, "variants", way))


@pytest.mark.parametrize(("name", "size"), measured("differences", ["float64", "float32"]))
def test_differences_of_gradients_are_the_dense_hessian_within_their_own_error(name, size, seen):
    truth = words_through(torch.sin, torch.float64)
    dense = dense_hessian(truth.objective, truth.params, truth.batch)
    exact = torch.linalg.eigvalsh(dense)
    largest = exact[exact.abs().argmax()]
    V = directions(len(dense)) / directions(len(dense)).norm(dim=0)
    processes = seen(size, "differences", name)
    for process in processes:
        assert (
            process["refused"].startswith("ObjectiveError: ")
            and "second derivative" in process["refused"]
        )
        assert process["wrong"] == "ValueError: step must be positive and finite, got -1.0."
        errors = (process["products"] - dense @ V).norm(dim=0)
        # An estimate of the size of an error, as in one process.
        assert (
            0 < errors.max() <= 5 * process["error"]
            and process["error"] < {"float64": 1e-7, "float32": 1e-2}[name]
        )
        assert process["loss"] == pytest.approx(
            truth.objective(truth.params, truth.batch).item(), rel=1e-6
        )
        if process["pairs"] is not None:
            values, bounds, converged = process["pairs"]
            # No pair is certified beyond what differences can tell.
            assert abs(values[0].double() - largest) <= bounds[0] and converged == [False]
        assert (
            process["again"]
            and process["error"] == processes[0]["error"]
            and process["step"] == processes[0]["step"]
        )
    alone = FiniteDifferenceOperator(
        *vars(words_through(OnceSine.apply, getattr(torch, name))).values()
    )
    # The ladder of steps is the same, its differences but for rounding.
    assert processes[0]["step"] == pytest.approx(alone.step, rel=1e-6)


@pytest.mark.parametrize(("name", "size"), measured("preconditioned", ["words", "untied words"]))
def test_the_preconditioned_hessian_over_processes_is_that_of_one(name, size, seen):
    model, optimizer = trained_words(tied=name == "words")
    A = landscape.preconditioned(landscape.hessian(model, next_word_loss, tokens()), optimizer)
    expected = A @ directions(A.n)
    largest = float(torch.linalg.eigvalsh(A @ torch.eye(A.n, dtype=torch.float64))[-1])
    for process in seen(size, "preconditioned", name):
        # Three steps of training in each process, and sums over rows in another order.
        assert relative(process["products"], expected) < 1e-13 and process["contract"] < 1e-13
        assert (
            process["value"] == pytest.approx(largest, rel=1e-9)
            and process["num_unused"] == A.num_unused
        )
        assert process["checked"].startswith("operator checked: product within")
        assert "its state of 'norm.bias' is not finite" in process["refused"]


@pytest.mark.parametrize(("name", "size"), measured("held", ["by the graph"]))
def test_the_graph_holds_notes_and_no_weights(name, size, seen):
    for held in seen(size, "held", name):
        assert (
            held["notes"]
            <= 0.2 * held["weights"] + held["layer"]
            < held["weights"]
            <= held["tensors"]
        )
        assert held["notes: gathered and held"] == 0


@pytest.mark.parametrize(("name", "size"), measured("held", ["by the graph"]))
def test_a_product_gathers_each_weight_twice_and_holds_few(name, size, seen):
    for held in seen(size, "held", name):
        # Four weights are held, of which every second one is a bias, and one or two are at work.
        assert 0 < held["alive at once"] <= 4 * held["layer"]
        assert 1 <= held["times gathered"] <= 2


@pytest.mark.parametrize(("name", "size"), measured("held", ["by operators"]))
def test_graphs_are_freed_with_their_operators(name, size, seen):
    for held in seen(size, "held", name):
        # An operator has one graph, whatever was evaluated to check it.
        assert held["before"] < held["one operator"]
        assert held["two operators"] + held["before"] == 2 * held["one operator"]
        assert held["after"] == held["before"]


# --- solvers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), measured("solved", SOLVED, sizes=(3,)))
def test_solvers_come_to_the_same_numbers_on_any_number_of_processes(name, size, seen, alone):
    expected = solved(alone(name))
    whole = seen(1, "solved", name)[0]["vectors"]
    # The sign of an eigenvector is nobody's choice.
    signs = torch.sign((whole * expected["vectors"]).sum(0))
    torch.testing.assert_close(whole * signs, expected["vectors"], rtol=0, atol=1e-9)
    for number in range(1, size + 1):
        results = seen(number, "solved", name)
        for result in results:
            for counted in ("num_matvecs", "num_unused"):
                assert result[counted] == expected[counted]
            torch.testing.assert_close(
                torch.tensor(result["values"]), torch.tensor(expected["values"]), rtol=1e-12, atol=0
            )
            torch.testing.assert_close(
                result["nodes"], expected["nodes"], rtol=1e-9, atol=1e-12, equal_nan=True
            )
            assert result["trace"] == pytest.approx(expected["trace"], rel=1e-11)
            assert result["power"][0] == pytest.approx(expected["power"][0], rel=1e-12)
            assert result["restarted"] == pytest.approx(expected["restarted"], rel=1e-6)
            assert result["contract"] < 1e-13 and result["orthogonality_defect"] < 1e-13
            for said in ("certificate", "density", "checked", "values", "residuals", "trace"):
                assert result[said] == results[0][said]


# --- all processes or none ------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "size"), measured("failures", ALONE))
def test_what_is_wrong_everywhere_or_differs_is_said_by_all_processes(wrong, size, seen):
    for said in seen(size, "failures", wrong):
        assert said.startswith(ALONE[wrong].format(last=size - 1))


@pytest.mark.parametrize(("wrong", "size"), measured("failures", REPEATED))
def test_the_failure_of_one_process_is_said_by_all(wrong, size, seen):
    own, others = REPEATED[wrong]
    said = seen(size, "failures", wrong)
    assert said[-1].startswith(own)
    failed = f"Process {size - 1} of {size} failed, so all stop. It says: "
    assert all(text.startswith(others.format(failed=failed)) for text in said[:-1])


@pytest.mark.parametrize(("wrong", "size"), measured("failures", ["a weight that cannot be lent"]))
def test_memory_that_runs_out_for_a_lent_weight_is_said_by_all(wrong, size, seen):
    first, *others = seen(size, "failures", wrong)
    assert first.startswith("MemoryLimitError: Memory ran out in one of the processes")
    failed = f"MemoryLimitError: Process 0 of {size} failed, so all stop. It says: "
    assert all(said.startswith(failed) for said in others)


@pytest.mark.parametrize(("name", "size"), measured("failures", ["afterwards"]))
def test_processes_are_together_after_failures(name, size, seen):
    assert seen(size, "failures", name) == ["nothing"] * size


def test_dtensors_without_a_mesh_say_how_they_are_measured(monkeypatch):
    import torch.distributed.tensor as tensors

    monkeypatch.setattr(tensors, "DTensor", torch.nn.Parameter)
    with pytest.raises(
        ObjectiveError, match=r"places: is a DTensor.*landscape.hessian\(..., mesh=mesh\)"
    ):
        landscape.hessian(words(), next_word_loss, tokens())


# --- GPUs -----------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpus_come_to_the_same_products(tmp_path, alone):
    size = torch.cuda.device_count()
    started = []
    for rank in range(size):
        place = {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "PYTHONPATH": str(ROOT),
        }
        command = helper_command("sharded_cases", tmp_path, "cuda")
        started.append(subprocess.Popen(command, env={**os.environ, **place}))
    assert [process.wait(timeout=300) for process in started] == [0] * size
    expected = alone("words") @ directions(alone("words").n)
    for rank in range(size):
        seen = torch.load(tmp_path / f"{size}.{rank}.pt")
        # Another device adds up in another order.
        assert relative(seen["products"].cpu(), expected) < 1e-13
        assert seen["values"] == pytest.approx(
            landscape.eigsh(alone("words"), k=3, tol=1e-6).values.tolist(), rel=1e-11
        )
