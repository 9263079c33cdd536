"""Import of matplotlib where MPLBACKEND names a backend that is not installed.

The kernel of a notebook may set it so. Figures are files, written by the canvases of Agg, PDF and
SVG, so the backend does not matter.
"""

import os
import sys


def import_matplotlib() -> None:
    """Import matplotlib without failing on MPLBACKEND.

    A backend that is available is set as matplotlib itself would set it.
    """
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
