"""Image encoders with selective scans: `timm.create_model("vmamba_s")`.

They are registered with timm on import.
"""

from landscape.towers.simba import Simba
from landscape.towers.vmamba import VMamba

__all__ = ["Simba", "VMamba"]
