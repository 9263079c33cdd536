"""Versions of the packages that results may depend on."""

import importlib.metadata
import platform

from landscape.version import VERSION


def package_versions() -> dict[str, str]:
    """Return package versions that results may depend on.

    Imports none of the packages.
    """
    versions = {"landscape": VERSION, "python": platform.python_version()}
    for package in (
        "torch",
        "numpy",
        "open_clip_torch",
        "timm",
        "transformers",
        "numba",
        "pyhessian",
        "h5py",
    ):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return versions
