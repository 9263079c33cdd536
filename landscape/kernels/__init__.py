"""Differentiable array kernels for networks.

Numba and Triton are imported when a scan first runs on them.
"""

from landscape.kernels.scan import linear_scan, selective_scan

__all__ = ["linear_scan", "selective_scan"]
