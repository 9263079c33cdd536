"""Differentiable array kernels used inside networks."""
