"""An operator as SciPy's iterative methods take it.

Knows matrices, not networks. Shapes: n = dimension of the operator, k = vectors.
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator

from landscape.linalg.operator import SymmetricOperator

_DTYPES = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


class ScipyOperator(LinearOperator):
    """A symmetric operator that multiplies numpy arrays, its own adjoint.

    Vectors are converted to the operator's dtype and device, products come back in that dtype.

    Raises:
        ValueError: If the operator is in neither float32 nor float64, which SciPy could not hold.
    """

    def __init__(self, A: SymmetricOperator) -> None:
        if A.dtype not in _DTYPES:
            raise ValueError(f"SciPy holds operators in float32 or float64, got one in {A.dtype}.")
        self.operator = A
        super().__init__(dtype=_DTYPES[A.dtype], shape=A.shape)

    def _matmat(self, V: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        if np.iscomplexobj(V):
            raise ValueError("A real symmetric operator multiplies real vectors, got complex ones; multiply both parts.")
        # SciPy's solvers pass views of their own workspace, and of any byte order or stride.
        block = torch.tensor(np.ascontiguousarray(V, dtype=self.dtype), device=self.operator.device)
        products: np.ndarray = (self.operator @ block).cpu().numpy()
        return products

    def _matvec(self, v: np.ndarray) -> np.ndarray:
        return self._matmat(v.reshape(-1, 1))

    def _adjoint(self) -> "ScipyOperator":
        return self

    def _transpose(self) -> "ScipyOperator":
        return self
