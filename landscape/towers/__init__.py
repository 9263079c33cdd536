"""Image encoders with selective scans, registered with timm on import: `timm.create_model("vmamba_s")`."""

from landscape.towers.simba import Simba
from landscape.towers.vmamba import VMamba

__all__ = ["Simba", "VMamba"]
