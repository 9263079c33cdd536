"""The parts of the benchmarks, at toy sizes: judges tell the truth, contenders run, a failure
becomes a row. Nothing on time.
"""

import copy
import importlib
import json
import subprocess
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch

from landscape.curvature import HessianOperator, Objective
from landscape.linalg import DenseOperator, seeded
from landscape.towers import VMamba
from tests.conftest import Problem, make_mlp_problem
from tests.helpers.folders import EXPERIMENTS
from tests.helpers.matrices import Counting, wanted, with_spectrum
from tests.helpers.oracles import dense_hessian, relative_error
from tests.helpers.toy_clip import toy_pictures


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the folder experiments."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    return importlib.import_module


@pytest.fixture
def toy() -> Problem:
    """A classifier of 93 parameters without an L2 term, the same whichever tests ran before."""
    torch.manual_seed(0)
    return replace(make_mlp_problem(), weight_decay=0.0)


@pytest.fixture
def single(toy: Problem) -> tuple[Any, ...]:
    """The classifier in float32, as every contender takes it."""
    points, labels = toy.batch
    problem = replace(toy, model=copy.deepcopy(toy.model).float(), batch=(points.float(), labels))
    return problem.objective, problem.params, problem.batch


@pytest.fixture
def double(toy: Problem) -> tuple[Any, ...]:
    return toy.objective, toy.params, toy.batch


def _top(matrix: torch.Tensor, k: int = 5) -> np.ndarray:
    return wanted(np.linalg.eigvalsh(matrix.numpy()), k, "LM")


def test_the_true_values_are_those_of_the_dense_hessian(load, double):
    values, products = load("peers.judge").arpack_values(
        counted := Counting(HessianOperator(*double)), 5
    )
    np.testing.assert_allclose(values, _top(dense_hessian(*double)), rtol=1e-9)
    assert products == counted.count


def test_the_residual_judge_agrees_with_the_dense_hessian_and_does_not_mind_the_length_of_a_vector(
    load, double
):
    dense = dense_hessian(*double)
    values, vectors = torch.linalg.eigh(dense)
    values, vectors = (
        values[-3:],
        vectors[:, -3:] + 0.01 * torch.randn(len(dense), 3, generator=seeded(1), dtype=dense.dtype),
    )
    unit = vectors / vectors.norm(dim=0)
    expected = (dense @ unit - unit * values).norm(dim=0) / values.abs()
    found = load("peers.judge").true_residuals(HessianOperator(*double), values, 7 * vectors)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9)
    assert min(found) > 1e-3


def dominant_ritz_pairs(A, k, *, seed, last):
    """The k Ritz values largest in magnitude and their true residuals, by the dimension of the
    Krylov space up to `last`.

    The spaces of the judge once more, from powers in float64 kept apart by QR.
    """
    start = torch.randn(A.n, generator=seeded(seed), dtype=torch.float64).numpy()
    M, space = A.matrix.numpy(), (start / np.linalg.norm(start))[:, None]
    found = {}
    for m in range(1, last + 1):
        values, coordinates = np.linalg.eigh(space.T @ M @ space)
        best = np.argsort(-np.abs(values))[:k]
        vectors = space @ coordinates[:, best]
        found[m] = (
            values[best],
            np.linalg.norm(M @ vectors - vectors * values[best], axis=0) / np.abs(values[best]),
        )
        space = np.linalg.qr(np.column_stack([space, M @ space[:, -1]]))[0]
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_the_krylov_dimension_is_the_first_that_holds_the_pairs(load, seed):
    spectrum = np.concatenate([[9.0, -8.0, 7.0], np.linspace(-2, 3, 57)])
    A = with_spectrum(spectrum, seed=seed)
    found = load("peers.judge").krylov_dimension(A, spectrum[:3], tol=1e-3, seed=seed)
    residuals = {
        m: pair[1].max() for m, pair in dominant_ritz_pairs(A, 3, seed=seed, last=found).items()
    }
    assert residuals[found] <= 1e-3 < residuals[found - 1]


def test_a_krylov_space_that_holds_another_pair_to_the_last_digit_does_not_hold_the_true_ones(load):
    """The third has many like it beside it, the fourth stands alone at the other end: it converges
    before the third is seen.
    """
    truth = np.array([9.0, 8.0, 7.1, -7.08])
    A = with_spectrum(np.concatenate([truth, 7.05 - 0.05 * np.arange(120)]))
    found = load("peers.judge").krylov_dimension(A, truth[:3], tol=1e-3)
    spaces = dominant_ritz_pairs(A, 3, seed=0, last=found)
    by_residuals_alone = next(
        m for m, (_, residuals) in spaces.items() if m >= 3 and residuals.max() <= 1e-3
    )
    assert by_residuals_alone < found and spaces[by_residuals_alone][0][2] == pytest.approx(
        -7.08, rel=1e-5
    )
    values, residuals = spaces[found]
    np.testing.assert_allclose(values, truth[:3], rtol=1e-3)
    assert residuals.max() <= 1e-3


def test_the_krylov_dimension_stays_inside_the_support(load):
    inside = with_spectrum(np.array([5.0, -4.0, 3.0, 1.0, 0.5, 0.2]))
    whole = torch.zeros(9, 9, dtype=torch.float64)
    support = torch.tensor([0, 2, 3, 5, 6, 8])
    whole[support[:, None], support] = inside.matrix
    A = DenseOperator(whole)
    A.support = support
    judge, largest = load("peers.judge"), np.array([5.0, -4.0])
    assert judge.krylov_dimension(A, largest, tol=1e-6) == judge.krylov_dimension(
        inside, largest, tol=1e-6
    )
    with pytest.raises(RuntimeError, match="3 products do not give 2 pairs"):
        judge.krylov_dimension(inside, largest, tol=1e-14, limit=3)


def test_a_ghost_costs_the_value_that_was_missed_and_a_change_of_order_costs_nothing(load):
    errors = load("peers.judge").value_errors
    truth = np.array([10.0, -9.999, 5.0])
    assert max(errors(np.array([-9.999, 10.0, 5.0]), truth)) == 0
    ghosts = errors(np.array([10.0, 10.0, 5.0]), truth)
    assert sorted(ghosts)[:2] == [0, 0] and max(ghosts) == pytest.approx(19.999 / 9.999)
    assert errors(np.array([10.1, -9.999, 5.0]), truth)[0] == pytest.approx(0.01)


CONTENDERS = [
    "landscape eigsh, compiled",
    "landscape eigsh, retained",
    "SciPy eigsh, landscape operator",
    "pyhessian",
    "eigenthings power",
    "eigenthings Lanczos",
    "curvlinops + SciPy eigsh",
    "landscaper",
]


# That compiled products are right is held by tests/curvature/test_compiled.py.
@pytest.mark.parametrize("name", CONTENDERS[1:])
def test_a_contender_with_its_tightest_settings_finds_the_values_of_a_small_classifier(
    load, single, double, name
):
    solvers, judge = load("peers.solvers"), load("peers.judge")
    assert list(solvers.CONTENDERS) == CONTENDERS
    contender = solvers.CONTENDERS[name]
    if contender.package is not None:
        pytest.importorskip(contender.package, exc_type=ImportError)
    found = solvers.solve(
        contender, *single, contender.ladder[-1] if contender.ladder else contender.defaults
    )
    assert found.vectors.shape == (93, 5)
    # The module has no layer through which a peer's second derivatives are wrong; 1e-3 is what all
    # are driven to.
    assert max(judge.value_errors(found.values.numpy(), _top(dense_hessian(*double)))) < 1e-3
    # Power iteration stops on the change of a value, which goes with the square of the residual.
    assert max(judge.true_residuals(HessianOperator(*double), found.values, found.vectors)) < 1e-2
    assert found.products >= 5


def test_products_are_counted_as_the_backward_passes_that_were_made(load, single, monkeypatch):
    solvers = load("peers.solvers")
    made = []
    whole = HessianOperator.matmat
    monkeypatch.setattr(
        HessianOperator, "matmat", lambda self, V: made.append(V.shape[1]) or whole(self, V)
    )
    for name in CONTENDERS[1:3]:
        made.clear()
        found = solvers.solve(solvers.CONTENDERS[name], *single, solvers.CONTENDERS[name].defaults)
        assert found.products == sum(made) and found.says_converged is True


def test_the_operations_that_jvp_of_jacrev_gets_compute_what_the_towers_compute(load):
    tower = VMamba(dims=(4, 6), depths=(1, 1), gated=False, num_classes=0).double().eval()
    pictures, params = toy_pictures(2), dict(tower.named_parameters())
    ones = {name: torch.ones_like(tensor) for name, tensor in params.items()}

    def loss(params: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(tower, params, (pictures,)).square().sum()

    with load("peers.problem").scan_backend("reference"):
        own = loss(params)
        with load("peers.solvers")._for_jvp_of_jacrev():
            torch.testing.assert_close(loss(params), own, rtol=1e-12, atol=0)
            _, product = torch.func.jvp(torch.func.jacrev(loss), (params,), (ones,))
        assert all(torch.isfinite(piece).all() for piece in product.values())
        with pytest.raises((NotImplementedError, ValueError)):
            torch.func.jvp(torch.func.jacrev(loss), (params,), (ones,))


def _row(load: Any, **fields: Any) -> Any:
    head = {
        "model": "toy",
        "epoch": 3,
        "contender": "pyhessian",
        "mode": "driven",
        "settings": {},
        "products": 10,
    }
    numbers = {
        "cpu_seconds": 1.0,
        "gradients": 20.0,
        "peak_mebibytes": 100.0,
        "residuals": [1e-4],
        "errors": [1e-5],
    }
    return load("peers.rows").Row(**{**head, **numbers, **fields})


def _driven(
    load: Any, monkeypatch: pytest.MonkeyPatch, residuals: list[float]
) -> tuple[Any, list[Any]]:
    """What `drive` returns when its rungs leave these residuals, and the settings that it tried."""
    rows, solvers = load("peers.rows"), load("peers.solvers")
    tried: list[Any] = []

    def measure(
        case: Any, truth: Any, contender: Any, mode: str, settings: Any, *, python: str
    ) -> Any:
        tried.append(settings["tol"])
        return _row(load, settings=settings, residuals=[residuals[settings["tol"]]])

    monkeypatch.setattr(rows, "measure", measure)
    ladder = tuple({"tol": index} for index in range(len(residuals)))
    contender = solvers.Contender("toy", None, lambda *_: None, {}, ladder)
    return rows.drive(None, None, contender, python=""), tried


def test_a_contender_is_driven_to_the_loosest_settings_that_do_and_no_further(load, monkeypatch):
    row, tried = _driven(load, monkeypatch, [1e-1, 1e-2, 9e-4, 1e-9])
    assert row.settings == {"tol": 2} and tried == [0, 1, 2]


def test_a_contender_that_never_gets_there_is_shown_at_its_best(load, monkeypatch):
    row, tried = _driven(load, monkeypatch, [1e-1, 2e-3, 5e-2])
    assert row.settings == {"tol": 1} and tried == [0, 1, 2]


def test_a_task_in_a_process_of_its_own_returns_its_result_or_says_in_one_line_why_not(load):
    processes = load("peers.processes")
    assert processes.run_task("json.dumps", {"obj": [1, 2]}) == "[1, 2]"
    with pytest.raises(
        processes.TaskFailed, match=r"^json.decoder.JSONDecodeError: Expecting value"
    ):
        processes.run_task("json.loads", {"s": "no"})
    with pytest.raises(processes.TaskFailed, match="killed by signal 6"):
        processes.run_task("os.abort", {})


def test_a_failed_run_is_valid_json(load, tmp_path):
    row = _row(
        load,
        cpu_seconds=float("nan"),
        residuals=[1.0, float("inf")],
        failure="ImportError: no topopy",
    )
    load("peers.processes").write_json(tmp_path / "rows.json", {"rows": [asdict(row)]})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (read,) = json.loads((tmp_path / "rows.json").read_text(), parse_constant=refuse)["rows"]
    assert (
        read["cpu_seconds"] is None
        and read["residuals"] == [1.0, None]
        and read["failure"] == row.failure
    )


def test_the_tables_show_who_failed_who_did_not_get_there_and_the_ratio_to_ours(load):
    tables, truth = (
        load("peers.tables"),
        load("peers.rows").Truth(93, 1.0, [3.0, 2.0], 40, 8, 0.01, 0.5),
    )
    rows = [
        _row(
            load, contender="landscape eigsh, compiled", mode="defaults", prepare_cpu_seconds=90.0
        ),
        _row(load, gradients=60.0, says_converged=None),
        _row(load, contender="eigenthings power", gradients=30.0, residuals=[2e-3]),
        _row(load, contender="landscaper", mode="defaults", failure="ImportError: no topopy"),
    ]
    text = tables.architecture_table(truth, rows)
    assert "alone 0.50 of that" in text and "the limit is 4.0 gradients" in text
    assert "failed: ImportError: no topopy" in text and "its best, with" in text
    ours, pyhessian = text.splitlines()[3:5]
    assert ours.split()[-9:] == ["1.00", "5.00", "after", "90", "CPU", "s", "once", "a", "model"]
    assert pyhessian.split()[-2:] == ["3.00", "15.00"]
    summary = tables.summary_table([(truth, rows), (truth, rows)])
    assert "fastest peer that is right / ours: 3.00 (pyhessian), 3.00 (pyhessian)" in summary
    assert next(line for line in summary.splitlines() if line.startswith("eigenthings")).split()[
        -6:-3
    ] == ["0", "of", "2"]


def test_a_row_that_is_precise_about_the_wrong_values_is_not_right(load):
    assert _row(load).is_right
    assert not _row(load, errors=[0.3]).is_right
    assert not _row(load, residuals=[1e-4, float("nan")]).is_right
    assert not _row(load, residuals=[], errors=[], failure="none").is_right


def test_recycling_counts_the_products_of_both_starts_on_every_batch(load, monkeypatch, single):
    recycling, problem = load("peers.recycling"), load("peers.problem")
    seen = []
    solve = recycling.eigsh
    monkeypatch.setattr(recycling, "load", lambda case, dtype, index: single)
    monkeypatch.setattr(
        recycling,
        "eigsh",
        lambda A, k, **options: seen.append(options.get("start")) or solve(A, k, **options),
    )
    case = asdict(problem.Case("toy", 0, "", ""))
    row = recycling.recycling_task(case, case, 3)
    assert len(row["cold"]) == len(row["warm"]) == len(row["earlier"]) == 3 and row["all_converged"]
    # The same batch and weights every time: once its vectors are known, they are of use, but for
    # the first.
    assert [start is None for start in seen] == [True, True, True, False] + 2 * [
        True,
        False,
        True,
        False,
    ]
    assert (
        row["warm"][0] == row["cold"][0]
        and max(*row["warm"][1:], *row["earlier"]) <= row["cold"][0]
    )
    assert "(" in recycling.recycling_table([recycling.RecyclingRow(**row)]).splitlines()[2]


def test_sets_tell_a_wrong_five_from_a_right_one(load, monkeypatch):
    sets, problem = load("peers.sets"), load("peers.problem")
    wrong = with_spectrum(
        np.concatenate([[11.0, -10.0, 9.0, 8.0, 7.1, -7.08], 7.05 - 0.05 * np.arange(120)])
    )
    right = with_spectrum(np.concatenate([[11.0, -10.0, 9.0, 8.0, 7.0], np.linspace(-3, 3, 100)]))
    monkeypatch.setattr(sets, "load", lambda case, dtype, index: (index,))
    monkeypatch.setattr(sets, "HessianOperator", lambda index: (right, wrong)[index])
    row = sets.SetsRow(**sets.sets_task(asdict(problem.Case("toy", 0, "", "")), 2))
    assert row.wrong == [1] and row.ours_wrong == [] and row.products[1] < row.ours_products[1]
    assert row.largest_error == pytest.approx(14.18 / 7.1, rel=1e-3)
    lines = sets.sets_table([row]).splitlines()
    assert (
        lines[2].split()[3:5] == ["1", f"({np.mean(row.products):.1f})"]
        and lines[3] == "a wrong value is off by up to 199.7%"
    )


def test_the_exact_spectrum_is_that_of_the_oracle_and_a_density_far_from_it_is_far(load, double):
    density = load("peers.density")
    exact = density.exact_eigenvalues(*double)
    np.testing.assert_allclose(
        exact, np.linalg.eigvalsh(dense_hessian(*double).numpy()), atol=1e-12
    )
    itself = density.Measure(exact, np.full(len(exact), 1 / len(exact)))
    assert itself.distance(exact) < 1e-12
    assert itself.distance(exact + 0.25) == pytest.approx(0.25)


def test_the_densities_of_the_peers_are_measures_with_the_trace_of_the_hessian(
    load, monkeypatch, single, double
):
    density = load("peers.density")
    pytest.importorskip("pyhessian")
    monkeypatch.setattr(density, "small_problem", lambda dtype: single)
    dense = dense_hessian(*double)
    (measure,) = density._pyhessian(100, 10, 0)
    assert measure.weights.sum() == pytest.approx(1, abs=1e-5)
    # 100 Rademacher probes: the standard error of the mean eigenvalue is at most sqrt(2 / 100)
    # |H|_F / n.
    error = 0.02**0.5 * float(torch.linalg.norm(dense)) / len(dense)
    assert abs(measure.positions @ measure.weights - float(dense.trace()) / len(dense)) < 4 * error
    with pytest.raises(RuntimeError, match="deprecated|linalg"):
        density._pyhessian_from_pypi(2, 4, 0)


def test_the_small_problem_of_the_densities_is_the_same_in_every_run_and_trained(load):
    density = load("peers.density")
    objective, params, batch = density.small_problem(torch.float64)
    assert sum(tensor.numel() for tensor in params.values()) == 2950
    again = density.small_problem(torch.float64)
    assert (
        relative_error(*(torch.cat([t.flatten() for t in p.values()]) for p in (again[1], params)))
        == 0
    )
    assert 0.01 < float(objective(params, batch)) < 1.0


def test_the_environment_of_the_peers_sees_the_packages_in_use_and_says_why_a_peer_is_missing(
    load, tmp_path
):
    environment = load("peers.environment")
    nowhere = str(tmp_path / "nowhere")
    peers = [environment.Peer("numpy", "numpy"), environment.Peer(nowhere, "no_such_module")]
    made = environment.make_environment(tmp_path / "env", peers)
    assert made.versions == {"numpy": np.__version__}
    assert list(made.failures) == ["no_such_module"] and nowhere in made.failures["no_such_module"]


def test_scaling_measures_what_a_job_took(load):
    scaling = load("benchmark_scaling")
    row = scaling.scaling_task(asdict(scaling.Job("32x1", num_pairs=4, k=2, num_batches=2)))
    n = sum(parameter.numel() for parameter in scaling.family_model("32x1").parameters())
    assert (
        row["n"] == n
        and row["converged"]
        and row["products"] >= 4
        and len(row["seconds_by_batch"]) == 2
    )
    assert row["peak_mebibytes"] > 100
    json.dumps(row)
    capped = scaling.scaling_task(asdict(scaling.Job("32x1", num_pairs=4, k=2, max_products=3)))
    assert capped["products"] == 3 and not capped["converged"]
    text = scaling.table("parameters", [scaling.Row(**{**row, "job": scaling.Job(**row["job"])})])
    assert f"{n:,}" in text and text.splitlines()[2].endswith("yes")


def test_the_family_of_models_spans_a_tenth_of_a_million_to_thirty_million_parameters(load):
    scaling = load("benchmark_scaling")
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in scaling.family_model(f"{width}x{layers}").parameters())
            for width, layers in scaling.FAMILY
        ]
    assert sizes == sorted(sizes) and 0.09e6 < sizes[0] < 0.11e6 and 29e6 < sizes[-1] < 31e6


def test_two_versions_solve_the_same_matrix_in_turn_and_a_worker_that_fails_says_why(load):
    versions, benchmark = load("versions"), load("benchmark_eigsh")
    arguments = (["--work", 30, dtype] for dtype in ("float64", "float32"))
    started = [
        versions.Worker(benchmark.__file__, given, source=versions.ROOT) for given in arguments
    ]
    try:
        row = benchmark.compare(*started, 30, "float32", busy=False, rounds=2)
    finally:
        for worker in started:
            worker.close()
    # The same matrix, rounded to float32: its values move by at most a few units in the last place
    # of the largest.
    assert (
        row.products == 30
        and 0 < row.values < 1e-5
        and min(row.before_cpu_seconds, row.after_cpu_seconds) > 0
    )
    assert benchmark.line(row).split()[:3] == ["30", "float32", "free"]
    broken = versions.Worker(benchmark.__file__, ["--work", 30, "float99"], source=versions.ROOT)
    with pytest.raises(versions.WorkerFailed, match="float99"):
        broken.ask(0)
    broken.close()


def test_the_tree_of_a_commit_is_that_commit(load):
    versions = load("versions")
    with versions.source_of(None) as own:
        assert (own / "landscape" / "version.py").exists()
    if not (own / ".git").exists():
        pytest.skip("no repository")
    with versions.source_of("HEAD") as tree:
        shown = subprocess.run(
            ["git", "show", "HEAD:landscape/version.py"], cwd=own, check=True, capture_output=True
        ).stdout
        assert (tree / "landscape" / "version.py").read_bytes() == shown
    assert not tree.exists()


def test_both_ways_to_orthogonalise_are_measured_on_the_same_vector(load):
    pytest.importorskip("numba")
    row = load("benchmark_gram_schmidt").compare(3000, 18, torch.float32, rounds=2)
    assert row["difference"] < 1e-6 and min(row["torch"], row["kernel"]) > 0


def test_a_batch_is_measured_by_both_versions_in_turn_and_held_against_float64(
    load, monkeypatch, tmp_path
):
    benchmark, asked = load("benchmark_batch"), []

    class Worker:
        """Answers as the version at `source`: five values that are off by a share of its own."""

        def __init__(self, script, arguments, *, source, threads):
            self.name, self.product = source.name, arguments[2]
            assert "num_samples: 75" in arguments[1].read_text() and threads == 1

        def ask(self, indices):
            asked.append((self.name, indices))
            error = {"before": 0.0, "after": 1e-4}[self.name]
            values = [5.0, -4.0 * (1 + error), 3.0, 2.0, 1.0]
            seconds = {"before": 2.0, "after": 1.0}[self.name]
            return [
                {
                    "cpu_seconds": seconds,
                    "products": 20 + index,
                    "values": values,
                    "bounds": [1e-5] * 5,
                    "peak_mebibytes": 9.0,
                }
                | {"chosen": self.product}
                for index in indices
            ]

        def close(self):
            asked.append((self.name, "closed"))

    monkeypatch.setattr(benchmark, "Worker", Worker)
    (tmp_path / "vit" / "checkpoints").mkdir(parents=True)
    (tmp_path / "vit" / "checkpoints" / "epoch_0.pt").touch()
    (tmp_path / "truth_vit_tiny_64_0.json").write_text(json.dumps([[5.0, -4.0, 3.0, 2.0, 1.0]] * 4))
    sources = tmp_path / "before", tmp_path / "after"
    row = benchmark.compare(
        tmp_path, "vit_tiny_64", 0, sources, product="traced", num_batches=4, chunk=2
    )
    turns = [
        ("before", [4]),
        ("after", [4]),
        ("before", [0, 1]),
        ("after", [0, 1]),
        ("after", [2, 3]),
        ("before", [2, 3]),
    ]
    assert asked == [*turns, ("before", "closed"), ("after", "closed")]
    assert (row.before_cpu_seconds, row.after_cpu_seconds, row.products, row.chosen) == (
        2,
        1,
        21.5,
        "traced",
    )
    assert row.before_worst_value_error == 0 and row.worst_value_error == pytest.approx(1e-4)
    assert (row.before_within_bounds, row.within_bounds) == (1.0, 0.8)
    assert {
        "model",
        "state",
        "before_cpu_seconds",
        "after_cpu_seconds",
        "products",
        "worst_value_error",
    } <= asdict(row).keys()
    assert benchmark.line(row).split()[:5] == [
        "vit_tiny_64",
        "initialisation",
        "2.000",
        "1.000",
        "2.00",
    ]


def test_the_matrix_products_of_a_computation_are_recorded_with_its_backward_passes_and_timed_alone(
    load,
):
    products = load("matrix_products")
    picture, kernel = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)
    layer = torch.randn(5, 144, requires_grad=True)

    def compute() -> None:
        features = torch.conv2d(picture, kernel).flatten(1)
        torch.autograd.grad((features @ layer[0].expand(7, -1).T).exp().sum(), [kernel, layer])

    calls = products.recorded(compute)
    kinds = sorted(call.operation.overloadpacket.__name__ for call in calls.elements())
    # The product and one for each of its two factors; the second factor has a stride of 0.
    assert kinds == ["convolution", "convolution_backward", "mm", "mm", "mm"]
    assert any(
        0 in entry.strides
        for call in calls
        for entry in call.arguments
        if isinstance(entry, products.TensorLike)
    )
    limit = products.limit_of(compute, rounds=1)
    # Forward: 2 * 2 * 4 * 36 * 27; backward by the kernel alone, as much. Each matrix product: 2 *
    # 2 * 144 * 7.
    assert limit.num_calls == 5 and limit.flops == 2 * 15552 + 3 * 4032
    assert limit.matrix_seconds > 0 and limit.convolution_seconds > 0


def test_the_limit_of_a_product_holds_its_matrix_products_alone(load):
    # A linear map of 20 points from 30 to 10 numbers: a gradient by the weights makes one more
    # product of matrices than the loss, and its derivative along a vector two.
    model, points = torch.nn.Linear(30, 10, bias=False), torch.randn(20, 30)
    objective = Objective.from_closure(model, lambda model, x: model(x).square().sum())
    limit = load("matrix_products").product_limit(
        HessianOperator(objective, dict(model.named_parameters()), points)
    )
    assert (
        limit.num_calls == 2
        and limit.flops == 2 * (2 * 20 * 30 * 10)
        and limit.convolution_seconds == 0
    )


def test_a_product_of_a_large_model_is_measured_in_a_process_of_its_own_and_a_failure_is_a_row(
    load, monkeypatch
):
    large, versions = load("benchmark_large"), load("versions")
    row = large.measure("32x1", "this", versions.ROOT, product="retained", count=1, threads=1)
    assert row.n == sum(tensor.numel() for tensor in large.model_of("32x1").parameters())
    assert (
        0 < row.cpu_seconds < row.first_seconds * 10
        and row.peak_mebibytes >= row.idle_mebibytes > 100
    )
    assert row.chosen == "double backward, retained graph" and large.line(row).endswith(row.chosen)

    class Failing:
        """A worker that ends as a real one does; test_two_versions_... ends a real one."""

        def __init__(self, script, arguments, **options):
            self.product = arguments[2]

        def ask(self, count):
            raise versions.WorkerFailed(f"Traceback\nValueError: no product is {self.product!r}\n")

        def close(self):
            pass

    monkeypatch.setattr(large, "Worker", Failing)
    failed = large.measure("32x1", "this", versions.ROOT, product="by magic", count=1, threads=1)
    assert "by magic" in failed.failure and "failed: " in large.line(failed)


def test_the_benchmark_of_kept_vectors_runs_and_says_every_step(load, tmp_path):
    lines = load("benchmark_vectors").measure(1000, 2, tmp_path / "v.h5")
    titles = [line.split(":")[0] for line in lines]
    assert titles == (
        ["round and compress", "write", "read and check", "multiply", "rounding", "peak memory"]
    )
