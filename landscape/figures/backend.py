"""Importing matplotlib where MPLBACKEND names a backend that is not installed here, as a notebook's kernel may.

Figures are files, written by the canvases of Agg, PDF and SVG: which backend there is, if any, is of no concern.
"""

import os
import sys


def import_matplotlib() -> None:
    """Import matplotlib without failing on MPLBACKEND; a backend that can be had is set as matplotlib itself would."""
    if "matplotlib" in sys.modules:
        return
    wanted = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if wanted is not None:
            os.environ["MPLBACKEND"] = wanted
    if wanted:
        try:
            matplotlib.rcParams["backend"] = wanted
        except ValueError:
            pass
