"""Coordinates as runs, against index arithmetic of NumPy."""

import numpy as np
import pytest
import torch

from landscape.curvature import HessianBlocks, HessianOperator, Objective, select_parameters
from landscape.linalg import (
    Coordinates,
    DenseOperator,
    SymmetricOperator,
    check_operator,
    coordinates,
    eigsh,
    restricted,
    seeded,
)
from landscape.linalg.vectors import VectorSpace
from tests.curvature.test_tables import EXACT, TOKENS, Reader, loss
from tests.helpers.matrices import with_spectrum
from tests.helpers.oracles import dense_hessian, relative_error

N = 60_000
EMPTY = np.zeros(0, dtype=np.int64)


def drawn(seed: int, *, mean_length: int, n: int = N) -> np.ndarray:
    """Coordinates below n in runs of random lengths, with random gaps between them."""
    random = np.random.default_rng(seed)
    edges = np.cumsum(random.integers(1, 2 * mean_length, size=2 * (n // (2 * mean_length))))
    edges = edges[edges < n]
    member = np.zeros(n, dtype=bool)
    for start, stop in zip(edges[::2], edges[1::2]):
        member[start:stop] = True
    return np.flatnonzero(member)


# Long runs are copied as runs and short ones by index; the ends of the vector are inside, outside,
# and all there is.
CASES = {
    "long runs": drawn(0, mean_length=5000),
    "short runs": drawn(1, mean_length=3),
    "runs about as long as where the copy changes": drawn(2, mean_length=2048),
    "from the first to the last": np.concatenate([np.arange(10_000), np.arange(50_000, N)]),
    "a gap longer than any buffer": np.array([*range(5000), *range(599_990, 600_000)]),
    "a single coordinate": np.array([17]),
    "all": np.arange(N),
    "none": EMPTY,
}


def of(indices: np.ndarray) -> Coordinates:
    return Coordinates.from_indices(torch.from_numpy(indices))


@pytest.fixture(params=CASES)
def case(request) -> np.ndarray:
    return CASES[request.param]


def test_both_ways_of_holding_coordinates_are_among_the_cases():
    by_index = {name for name, indices in CASES.items() if of(indices)._indices is not None}
    assert by_index == {
        "short runs",
        "runs about as long as where the copy changes",
        "a single coordinate",
        "none",
    }
    assert max(np.diff(CASES["a gap longer than any buffer"])) > 2 * coordinates._ZEROS


def test_indices_come_back_as_they_were_given(case):
    coordinates = of(case)
    assert len(coordinates) == len(case) and coordinates.indices().numpy().tolist() == case.tolist()
    assert (
        coordinates.stop == (case[-1] + 1 if len(case) else 0)
        and coordinates.indices().dtype == torch.int64
    )


def test_runs_are_as_long_as_they_can_be(case):
    starts, stops = of(case).runs()
    assert (starts[1:] > stops[:-1]).all() and (stops > starts).all()
    assert np.concatenate([EMPTY, *map(np.arange, starts, stops)]).tolist() == case.tolist()


@pytest.mark.parametrize("shape, dim", [((-1,), 0), ((3, -1), 1), ((-1, 2), 0), ((1, -1), 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_entries_are_selected_and_put_back_as_by_index(case, shape, dim, dtype):
    n = max([N, *(case + 1)])
    x = torch.randn(
        [n if size == -1 else size for size in shape], generator=seeded(0), dtype=torch.float64
    ).to(dtype)
    coordinates = of(case)
    part = coordinates.select(x, dim)
    assert np.array_equal(part.numpy(), np.take(x.numpy(), case, axis=dim)) and part.is_contiguous()
    assert part.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() or not part.numel()
    expected = np.zeros(x.shape, dtype=x.numpy().dtype)
    np.moveaxis(expected, dim, 0)[case] = np.moveaxis(part.numpy(), dim, 0)
    whole = coordinates.expand(part, n, dim)
    assert (
        np.array_equal(whole.numpy(), expected) and whole.dtype == dtype and whole.is_contiguous()
    )
    out = torch.full_like(x, torch.nan)
    assert np.array_equal(
        coordinates.expand(part, n, dim, out=out).numpy(), expected
    ) and np.array_equal(out.numpy(), expected)


def test_columns_that_are_rows_in_memory_are_selected_too(case):
    n = max([N, *(case + 1)])
    x = torch.randn(3, n, generator=seeded(0)).T
    part = of(case).select(x)
    assert np.array_equal(part.numpy(), x.numpy()[case])
    assert np.array_equal(of(case).expand(part.T.contiguous().T, n).numpy()[case], x.numpy()[case])


@pytest.mark.parametrize("other", CASES)
def test_unions_places_and_complements_are_those_of_sets(case, other):
    first, second = of(case), of(CASES[other])
    assert (
        Coordinates.union([first, second]).indices().tolist()
        == np.union1d(case, CASES[other]).tolist()
    )
    both = np.intersect1d(case, CASES[other])
    assert (
        first.places_in(second).indices().tolist() == np.searchsorted(CASES[other], both).tolist()
    )
    n = max([N, *(case + 1)])
    assert np.array_equal(first.complement(n).indices(), np.setdiff1d(np.arange(n), case))
    assert (first == second) == np.array_equal(case, CASES[other])


def test_a_union_of_many_is_that_of_all_of_them():
    several = [drawn(seed, mean_length=40, n=3000) for seed in range(5)]
    expected = np.unique(np.concatenate(several))
    assert Coordinates.union([of(one) for one in several]).indices().tolist() == expected.tolist()


def test_coordinates_below_bounds_are_counted(case):
    bounds = np.unique(
        np.concatenate([[0, 1, N, 700_000], case[:50], case[:50] + 1, drawn(5, mean_length=900)])
    )
    assert of(case).count_below(bounds).tolist() == np.searchsorted(case, bounds).tolist()


def test_runs_that_touch_are_joined_and_empty_ones_left_out():
    coordinates = Coordinates(np.array([0, 3, 5, 5, 90]), np.array([3, 5, 5, 7, 90]))
    assert [ends.tolist() for ends in coordinates.runs()] == [
        [0],
        [7],
    ] and coordinates == Coordinates.all(7)
    with pytest.raises(AssertionError, match="overlap"):
        Coordinates(np.array([0, 2]), np.array([3, 5]))


@pytest.mark.parametrize(
    "indices, said",
    [
        (torch.tensor([1, 1, 2]), "ascend"),
        (torch.tensor([2, 1]), "ascend"),
        (torch.tensor([-1, 1]), "from 0 on"),
        (torch.tensor([1, 2], dtype=torch.int32), "int64"),
        (torch.tensor([[1, 2]]), "vector"),
        (torch.tensor([True, False]), "int64"),
    ],
)
def test_what_is_no_ascending_vector_of_indices_is_refused(indices, said):
    with pytest.raises(ValueError, match=said):
        Coordinates.from_indices(indices)


def test_coordinates_are_no_keys_and_say_how_many_they_are():
    with pytest.raises(TypeError, match="unhashable"):
        hash(Coordinates.all(3))
    assert (
        repr(of(np.array([0, 1, 2, 7]))) == "Coordinates(4 in 2 runs)" and Coordinates.all(3) != 3
    )


# --- in Hessians ----------------------------------------------------------------------------------


@pytest.mark.parametrize("product", ["retained", "rebuilt", "traced"])
def test_products_copied_by_runs_are_those_copied_by_index_to_the_bit(product, monkeypatch):
    results = {}
    for way, mean_length in (("by index", 10**12), ("by runs", 1)):
        monkeypatch.setitem(coordinates._MEAN_LENGTH, "cpu", mean_length)
        # A new model, so that both are checked.
        model = Reader()
        objective, params = Objective.from_closure(model, loss), select_parameters(model)
        H = HessianOperator(objective, params, TOKENS, hvp=product)
        assert (H.support_runs._indices is None) == (way == "by runs")
        V = torch.randn(H.n, 3, generator=seeded(0), dtype=torch.float64)
        blocks = HessianBlocks(
            objective,
            params,
            TOKENS,
            {"ends": ("table.weight", "idle", "head.bias")},
            hvp=product,
        )
        block = blocks.block("ends")
        pairs = eigsh(H, 3, tol=1e-6)
        part = restricted(H, H.support[3:17])
        small = (
            H.matmat_in_support(V[H.support]),
            block @ V[: block.n],
            part @ V[:14],
            pairs.values,
            pairs.vectors,
        )
        results[way] = H @ V, *small, H.support, (H + part.whole).support, H.checked
    for by_index, by_runs in zip(*results.values()):
        assert by_index == by_runs if isinstance(by_index, str) else torch.equal(by_index, by_runs)
    assert (
        relative_error(results["by runs"][0], dense_hessian(objective, params, TOKENS) @ V) < EXACT
    )


# --- supports that people state themselves --------------------------------------------------------

SUPPORT = torch.tensor([1, 2, 5, 8])


class Stated(DenseOperator):
    """An operator with zeros outside of `SUPPORT`, which a subclass states."""

    def __init__(self) -> None:
        inside = with_spectrum(np.array([3.0, -1.0, 0.5, 2.0])).matrix
        whole = torch.zeros(10, 10, dtype=torch.float64)
        whole[SUPPORT[:, None], SUPPORT] = inside
        super().__init__(whole)


class SetInInit(Stated):
    def __init__(self) -> None:
        super().__init__()
        self.support = SUPPORT.clone()


class OfTheClass(Stated):
    support = SUPPORT.clone()


class ByProperty(Stated):
    @property
    def support(self):
        return SUPPORT.clone()


class AsRuns(Stated):
    def __init__(self) -> None:
        super().__init__()
        self.support = Coordinates.from_indices(SUPPORT)


@pytest.mark.parametrize("made", [SetInInit, OfTheClass, ByProperty, AsRuns])
def test_a_support_may_be_stated_in_any_way_and_solvers_use_it(made):
    A = made()
    assert (
        isinstance(A, SymmetricOperator) and torch.equal(A.support, SUPPORT) and A.num_unused == 6
    )
    assert A.support_runs.indices().tolist() == SUPPORT.tolist()
    pairs = eigsh(A, 4)
    expected = np.linalg.eigvalsh(A.matrix.numpy())
    np.testing.assert_allclose(
        np.sort(pairs.values.numpy()), np.sort(expected[np.abs(expected) > 1e-8]), rtol=1e-10
    )
    assert pairs.num_matvecs <= 4 and (pairs.vectors[[0, 3, 4, 6, 7, 9]] == 0).all()
    assert check_operator(A).outside == 0 and restricted(
        A, torch.tensor([2, 3, 8])
    ).support.tolist() == [0, 2]


def test_a_support_can_be_set_anew_and_taken_back():
    A = Stated()
    assert A.support is None and A.support_runs is None and A.num_unused == 0
    A.support = SUPPORT
    assert A.support is SUPPORT and A.support_runs is A.support_runs
    A.support = torch.arange(9)
    assert len(A.support_runs) == 9
    A.support = None
    assert A.support is None and A.support_runs is None


@pytest.mark.parametrize(
    "support, said",
    [(SUPPORT.flip(0), "ascend"), (torch.tensor([2, 10]), r"must lie in 0\.\.9, .*got 10")],
)
def test_a_support_that_solvers_cannot_use_is_refused(support, said):
    A = Stated()
    A.support = support
    with pytest.raises(ValueError, match=rf"Stated\.support: .*{said}"):
        eigsh(A, 1)


def test_restrictions_take_coordinates_as_they_take_indices():
    A, V = Stated(), torch.randn(3, 2, generator=seeded(0), dtype=torch.float64)
    rows = torch.tensor([2, 3, 8])
    part, same = restricted(A, Coordinates.from_indices(rows)), restricted(A, rows)
    assert (
        torch.equal(part.rows, rows)
        and torch.equal(same.rows, rows)
        and torch.equal(part @ V, same @ V)
    )
    with pytest.raises(ValueError, match=r"must lie in 0\.\.9, got 11"):
        restricted(A, Coordinates.from_indices(torch.tensor([2, 11])))
    assert VectorSpace(10).restricted(Coordinates.from_indices(rows)).n == 3
