"""Symmetric matrices with prescribed spectra: the outside truth of the eigensolver tests."""

import numpy as np
import torch
from torch import Tensor

from landscape.linalg import DenseOperator, SymmetricOperator


def with_spectrum(
    values: np.ndarray, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> DenseOperator:
    """Q diag(values) Q^T for a random orthogonal Q."""
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    M = (Q * values) @ Q.T
    return DenseOperator(torch.from_numpy((M + M.T) / 2).to(dtype))


class Diagonal(SymmetricOperator):
    """diag(entries): products are cheap at any size."""

    def __init__(self, entries: Tensor) -> None:
        self.entries, self.n, self.dtype, self.device = (
            entries,
            len(entries),
            entries.dtype,
            entries.device,
        )

    def matmat(self, V: Tensor) -> Tensor:
        return V * self.entries[:, None]


class Padded(SymmetricOperator):
    """A matrix between rows and columns of zeros, which says so."""

    def __init__(self, inside: SymmetricOperator, n: int, support: Tensor) -> None:
        self.inside, self.n, self.dtype, self.device, self.support = (
            inside,
            n,
            inside.dtype,
            inside.device,
            support,
        )

    def matmat(self, V: Tensor) -> Tensor:
        out = torch.zeros_like(V)
        out[self.support] = self.inside @ V[self.support]
        return out


class Counting(SymmetricOperator):
    """Counts the columns that an operator multiplies, independently of what a solver reports."""

    def __init__(self, inner: SymmetricOperator) -> None:
        self.inner, self.n, self.dtype, self.device = inner, inner.n, inner.dtype, inner.device
        self.count = 0

    def matmat(self, V: Tensor) -> Tensor:
        self.count += V.shape[1]
        return self.inner @ V


def wanted(values: np.ndarray, k: int, which: str) -> np.ndarray:
    """The k eigenvalues that `which` asks for, most wanted first."""
    key = {"LM": -np.abs(values), "LA": -values, "SA": values}[which]
    return values[np.argsort(key, kind="stable")][:k]
