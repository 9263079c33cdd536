"""Vectors of an operator: random numbers that do not depend on how they are cut, and what a cut
operator refuses.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from landscape.linalg import DenseOperator, average, dense_spectrum, restricted, seeded, vectors
from landscape.linalg.vectors import VectorSpace, all_finite, inner, norm, random_rows
from tests.helpers.matrices import with_spectrum


def randn(*shape, seed=3):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


# Below 16 torch draws number by number; 48 is three blocks, the others end in a part of one; the
# last is drawn in two stretches.
@pytest.mark.parametrize(
    "n", [1, 15, 16, 17, 48, 1000, 1007, (1 << 20) + 15, (1 << 20) + 16, (1 << 20) + 35]
)
@pytest.mark.parametrize("drawn", [32, 1 << 20])
def test_rows_drawn_apart_are_those_that_torch_draws_together(n, drawn, monkeypatch):
    if drawn == 32 and n > 1 << 20:
        pytest.skip("many short stretches take long")
    monkeypatch.setattr(vectors, "_DRAWN", drawn)
    whole, generator = randn(n), seeded(3)
    expected = (n // 3, 2 * n // 3 + 1)
    rows = random_rows(n, [(0, n // 3), (2 * n // 3 + 1, n)], generator)[:, 0]
    assert torch.equal(rows, torch.cat([whole[: expected[0]], whole[expected[1] :]]))
    # The next draw is that which follows in one process.
    after = seeded(3)
    torch.randn(n, generator=after, dtype=torch.float64)
    assert torch.equal(torch.randn(40, generator=generator), torch.randn(40, generator=after))


@pytest.mark.parametrize("count", [1, 3, 16])
def test_columns_are_drawn_as_torch_draws_a_matrix(count, monkeypatch):
    monkeypatch.setattr(vectors, "_DRAWN", 64)
    whole = randn(53, count)
    assert torch.equal(
        random_rows(53, [(2, 3), (9, 31), (31, 53)], seeded(3), count), whole[[2, *range(9, 53)]]
    )
    assert random_rows(53, [(4, 4)], seeded(3), count).shape == (0, count)


def test_a_whole_space_adds_nothing_up_and_draws_what_torch_draws():
    space, V = VectorSpace(50), randn(50, 4)
    numbers = np.arange(3.0)
    assert space.total(numbers) is numbers and space.is_whole and space.num_local == 50
    assert torch.equal(space.random(seeded(3)), randn(50)) and torch.equal(
        space.random(seeded(3), 2), randn(50, 2)
    )
    assert np.array_equal(space.inner(V.T, V[:, 0]), inner(V.T, V[:, 0])) and space.norm(
        V[:, 0]
    ) == norm(V[:, 0])
    assert (
        space.any(True)
        and not space.any(False)
        and space.restricted(torch.tensor([1, 7])) == VectorSpace(2)
    )


@dataclass(frozen=True)
class _Half(VectorSpace):
    """The first of two halves; the other process is never asked, so only what needs no sum can be
    tested.
    """

    @property
    def num_local(self):
        return self.n // 2

    @property
    def is_whole(self):
        return False


class _FirstRows(DenseOperator):
    @property
    def space(self):
        return _Half(self.n)


def test_what_needs_whole_vectors_refuses_an_operator_that_is_cut():
    A = _FirstRows(torch.eye(8))
    assert A.num_local == 4
    for refused, name in ((A.to_scipy, "to_scipy"), (lambda: dense_spectrum(A), "dense_spectrum")):
        with pytest.raises(
            ValueError,
            match=rf"{name}: the vectors .* are cut over several processes, 4 of 8 .* Use eigsh",
        ):
            refused()
    with pytest.raises(ValueError, match="size 8, 4 of it in this process, cannot multiply"):
        A @ torch.ones(8)


def test_operators_that_are_cut_in_different_ways_are_not_combined():
    whole, cut = with_spectrum(np.arange(8.0)), _FirstRows(torch.eye(8, dtype=torch.float64))
    for combined in (lambda: whole + cut, lambda: average([cut, whole]), lambda: cut - whole):
        with pytest.raises(
            ValueError,
            match="cut over the same processes in the same way, got . and . entries of 8",
        ):
            combined()
    assert (cut + 2 * cut).num_local == 4 and average([cut, cut]).space == cut.space


def test_coordinates_of_a_cut_operator_are_those_of_this_process_and_ascend():
    A = _FirstRows(torch.eye(8))
    with pytest.raises(ValueError, match=r"must lie in 0\.\.3, got 0 to 4"):
        restricted(A, torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="must ascend"):
        restricted(A, torch.tensor([2, 0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_are_finite_where_each_of_them_is(dtype):
    x = torch.randn(50, 3, generator=seeded(0), dtype=torch.float64).to(dtype)
    assert all_finite(x) and all_finite(x.T) and all_finite(x[:0])
    # Sums that overflow tell nothing.
    assert all_finite(torch.full((9,), torch.finfo(dtype).max, dtype=dtype))
    for bad in (torch.inf, -torch.inf, torch.nan):
        spoilt = x.clone()
        spoilt[17, 1] = bad
        assert not all_finite(spoilt)
    spoilt[3, 0], spoilt[17, 1] = torch.inf, -torch.inf
    assert not all_finite(spoilt)
