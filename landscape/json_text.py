"""Values as text in JSON that every reader accepts: no NaN and no Infinity.

Imports only the standard library.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any


def json_text(value: Any) -> str:
    """Format a value as a JSON document that ends in a line break.

    Numbers that are not finite become null; arrays and tuples become lists; dataclasses become
    objects; values of other types become texts.
    """
    return json.dumps(_plain(value), indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "tolist"):
        # Arrays and numbers of NumPy, without importing it.
        return _plain(value.tolist())
    return value if isinstance(value, str | int | None) else str(value)
