"""From the folder of a training run to a commented manifest. Imports no torch."""

from landscape.manifest.init.write import InitReport, init_manifest

__all__ = ["InitReport", "init_manifest"]
