"""The fused Gram-Schmidt kernel beside its twin in plain torch, and where each of them runs."""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch

from landscape.linalg import DenseOperator, eigsh, krylov, seeded
from landscape.linalg.krylov import KrylovBasis
from landscape.linalg.vectors import norm
from tests.helpers.matrices import with_spectrum

gram_schmidt = pytest.importorskip("landscape.linalg.gram_schmidt")

# Two stretches of the kernel and a part of one; blocks of 16 rows.
N = 2 * 2048 + 137
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
SCALES = {"random": 1.0, "tiny": 1e-30, "huge": 1e30}


@pytest.fixture
def fused(monkeypatch):
    """The kernel takes rows of any length; the list grows with every call of it."""
    calls = []
    monkeypatch.setattr(krylov, "_FUSED_LENGTH", {torch.float32: 1, torch.float64: 1})
    monkeypatch.setattr(krylov, "torch_threads", lambda: 1)
    kernel = gram_schmidt.orthogonalise
    monkeypatch.setattr(
        krylov,
        "_fused",
        lambda: lambda rows, w, total: calls.append(len(rows)) or kernel(rows, w, total),
    )
    return calls


def basis_of(m, dtype):
    """A basis of m random orthonormal rows of length N."""
    Q = torch.linalg.qr(torch.randn(N, m, generator=seeded(m), dtype=torch.float64))[0]
    # Never multiplied.
    operator = DenseOperator(torch.ones(1, 1, dtype=dtype))
    operator.n = N
    basis = KrylovBasis(operator, generator=seeded(0))
    basis.lock(Q.to(dtype))
    return basis


def rows_of(basis):
    return (
        torch.stack([basis.row(index) for index in range(basis._size)])
        if basis._size
        else torch.zeros(0, N)
    )


@pytest.mark.parametrize("m", [0, 1, 17, 40])
@pytest.mark.parametrize("kind", ["random", "nearly dependent", "tiny", "huge"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_kernel_removes_what_its_twin_removes(m, kind, dtype, fused):
    basis, eps = basis_of(m, dtype), EPS[dtype]
    V = rows_of(basis).double()
    w = torch.randn(N, generator=seeded(99), dtype=torch.float64) * SCALES.get(kind, 1e-6)
    if kind == "nearly dependent":
        w += 1e3 * torch.arange(1.0, m + 1).double() @ V
    w = w.to(dtype)
    size, given, left, twin = norm(w), w.double(), w.clone(), w.clone()
    fused.clear()
    components, remaining = basis._orthogonalise(left)
    expected, expected_remaining = basis._orthogonalise_by_torch(twin)
    assert fused == [m]
    # In units of rounding of w: the kernel rounds every number of w twice in all, the twin once for
    # each row and pass. Rows are themselves orthonormal to rounding, so that sizes of the
    # components may add up to sqrt(m) of it.
    tolerance = 4 * eps * size * max(1, m) ** 0.5
    np.testing.assert_allclose(components, expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(
        left.double() + torch.as_tensor(components) @ V, given, rtol=0, atol=tolerance
    )
    assert remaining == pytest.approx(norm(left), rel=1e-14 * N**0.5)
    assert abs(remaining - expected_remaining) <= tolerance
    # Orthogonal to one unit of rounding of what is left, where the twin is, too.
    if m:
        defects = [
            float((V @ vector.double()).abs().max()) / norm(vector) for vector in (left, twin)
        ]
        assert defects[0] <= max(eps, 1.5 * defects[1])


def test_a_vector_that_is_cut_in_two_is_orthogonalised_as_a_whole():
    rows = torch.linalg.qr(torch.randn(N, 17, generator=seeded(17), dtype=torch.float64))[
        0
    ].T.contiguous()
    w, cut = torch.randn(N, generator=seeded(99), dtype=torch.float64), N // 3
    whole = w.clone()
    expected, expected_remaining = gram_schmidt.orthogonalise(list(rows), whole)
    sums, barrier = {}, Barrier(2, timeout=60)

    def orthogonalised(part):
        def total(numbers):
            sums[part.start] = numbers
            barrier.wait()
            result = sum(sums[start] for start in sorted(sums))
            barrier.wait()
            return result

        left = w[part].clone()
        return left, *gram_schmidt.orthogonalise([row[part].clone() for row in rows], left, total)

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(orthogonalised, [slice(0, cut), slice(cut, N)]))
    # Sums of 4,000 products in another order: 1e-14 times the vector's length of 65.
    np.testing.assert_allclose(
        torch.cat([left for left, _, _ in results]), whole, rtol=0, atol=1e-12
    )
    for _, components, remaining in results:
        np.testing.assert_allclose(components, expected, rtol=0, atol=1e-12)
        assert remaining == pytest.approx(expected_remaining, rel=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_components_of_both_passes_are_counted(dtype, fused):
    basis = basis_of(17, dtype)
    # Rows that lean on each other by 1e-3, so that the second pass removes a thousandth of what the
    # first does.
    for index in range(1, 17):
        basis.row(index).add_(basis.row(0), alpha=1e-3)
    V = rows_of(basis).double()
    w = (torch.arange(1.0, 18).double() @ V).to(dtype)
    first = V @ w.double()
    second = V @ (w.double() - first @ V)
    assert float(second.abs().max()) > 1e-3
    components, _ = basis._orthogonalise(w)
    np.testing.assert_allclose(
        components, first + second, rtol=0, atol=4 * EPS[dtype] * float(first.norm())
    )


def test_infinity_and_nan_in_a_product_survive(fused):
    for bad in (float("inf"), float("nan")):
        w = torch.ones(N)
        w[5] = bad
        assert not np.isfinite(basis_of(17, torch.float32)._orthogonalise(w)[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_eigenvalues_by_the_kernel_are_those_of_the_spectrum(dtype, fused):
    spectrum = np.concatenate([[9.0, -8.0, 7.0, 6.5], np.linspace(-2, 3, 296)])
    operator = DenseOperator(with_spectrum(spectrum).matrix.to(dtype))
    pairs = eigsh(operator, 4, tol=1e-4)
    # A residual of 1e-4 leaves 1e-8 of a value; float32 rounds the matrix.
    np.testing.assert_allclose(pairs.values, [9, -8, 7, 6.5], rtol=max(1e-7, 10 * EPS[dtype]))
    assert fused and pairs.converged.all() and pairs.ritz.orthogonality_defect < 8 * EPS[dtype]


def test_short_rows_many_threads_other_layouts_and_a_missing_numba_take_the_twin(
    fused, monkeypatch
):
    basis = basis_of(3, torch.float32)
    w = torch.randn(N, 2, generator=seeded(1))
    fused.clear()
    basis._orthogonalise(w[:, 0])
    monkeypatch.setattr(krylov, "torch_threads", lambda: 2)
    basis._orthogonalise(w[:, 0].clone())
    monkeypatch.setattr(krylov, "torch_threads", lambda: 1)
    monkeypatch.setattr(krylov, "_FUSED_LENGTH", {torch.float32: N + 1})
    basis._orthogonalise(w[:, 0].clone())
    monkeypatch.setattr(krylov, "_FUSED_LENGTH", {torch.float32: N})
    monkeypatch.setattr(krylov, "_fused", lambda: None)
    assert basis._orthogonalise(w[:, 0].clone())[1] > 0
    assert not fused


def test_a_package_without_numba_has_no_kernel(monkeypatch):
    krylov._fused.cache_clear()
    monkeypatch.setitem(sys.modules, "landscape.linalg.gram_schmidt", None)
    assert krylov._fused() is None
    krylov._fused.cache_clear()


def test_where_no_folder_takes_the_machine_code_it_is_compiled_without(monkeypatch):
    seen = []

    def njit(function, cache=False, **options):
        seen.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return function

    monkeypatch.setattr(gram_schmidt, "njit", njit)
    assert gram_schmidt._compiled(norm) is norm and seen == [True, False]
