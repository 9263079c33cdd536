"""Audits: is a product the second derivative of the loss, and which module is to blame if not?

An audit spends about ten gradients; the spot check of an operator's first product spends two, and
leaves what is in doubt to the audit. Both compare with central differences.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.curvature.audits.blame import FaultyModule, find_faulty_modules
    from landscape.curvature.audits.objective_audit import audit, audit_at, audit_objective
    from landscape.curvature.audits.report import WHOLE, ZERO_TO_ROUNDING, AuditReport, AuditRow
    from landscape.curvature.audits.spot_check_result import EarlierCheck, SpotCheck

# Where each name is. Its first use imports that module, and torch with it.
_MODULES = {
    "WHOLE": "report",
    "ZERO_TO_ROUNDING": "report",
    "AuditReport": "report",
    "AuditRow": "report",
    "EarlierCheck": "spot_check_result",
    "FaultyModule": "blame",
    "SpotCheck": "spot_check_result",
    "audit": "objective_audit",
    "audit_at": "objective_audit",
    "audit_objective": "objective_audit",
    "find_faulty_modules": "blame",
}

__all__ = [
    "WHOLE",
    "ZERO_TO_ROUNDING",
    "AuditReport",
    "AuditRow",
    "EarlierCheck",
    "FaultyModule",
    "SpotCheck",
    "audit",
    "audit_at",
    "audit_objective",
    "find_faulty_modules",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
