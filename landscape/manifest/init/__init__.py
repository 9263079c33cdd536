"""Writing a commented manifest for the folder of a training run.

Imports no torch.
"""

from landscape.manifest.init.write import InitReport, init_manifest

__all__ = ["InitReport", "init_manifest"]
