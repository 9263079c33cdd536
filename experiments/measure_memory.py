"""Peak memory of eigsh at a size where the Krylov basis rules: n = 4 million, 30 products, float32.

    python experiments/measure_memory.py

The operator is diagonal, so that next to nothing but the solver takes memory. Printed: the resident
memory above what the process had before, the size of the (n, m) basis, and their ratio.
"""

import argparse
import resource

import torch
from torch import Tensor

from landscape.linalg import SymmetricOperator, eigsh


class Diagonal(SymmetricOperator):
    def __init__(self, entries: Tensor) -> None:
        self.entries = entries
        self.n, self.dtype, self.device = len(entries), entries.dtype, entries.device

    def matmat(self, V: Tensor) -> Tensor:
        return self.entries[:, None] * V


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=4_000_000)
    parser.add_argument("-m", type=int, default=30)
    options = parser.parse_args()
    A = Diagonal(torch.randn(options.n, generator=torch.Generator().manual_seed(0)))
    # Everything that is loaded on first use is loaded now.
    eigsh(Diagonal(A.entries[:1000].clone()), 5, max_matvecs=10)
    before = peak_mebibytes()
    pairs = eigsh(A, 5, tol=1e-9, max_matvecs=options.m, return_vectors=False)
    added = peak_mebibytes() - before
    basis = options.n * pairs.num_matvecs * 4 / 2**20
    print(f"n = {options.n:,}, m = {pairs.num_matvecs} products, float32")
    print(
        f"peak resident memory {added + before:.0f} MiB, {added:.0f} MiB of it for the solver; the "
        f"basis alone is {basis:.0f} MiB"
    )
    print(f"ratio {added / basis:.2f}")


if __name__ == "__main__":
    main()
