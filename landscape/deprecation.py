"""Old names of the Python interface, which go on working and warn."""

import importlib
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def warn_of_old_name(old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that a name is old, and say the new one.

    Python shows such a warning once for each line that uses the name.

    Args:
        stacklevel: Frames up to the line to name: 3 is the caller of the caller.
    """
    warnings.warn(f"{old} is an old name; use {new}.", DeprecationWarning, stacklevel=stacklevel)


def renamed_keyword(old: str, new: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let a function take a keyword argument by its old name too.

    Raises:
        TypeError: When it is called with both names.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(function)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(
                        f"{function.__qualname__}() takes {new} or its old name {old}, not both."
                    )
                warn_of_old_name(f"{old}=", f"{new}=")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return run

    return decorate


def renamed_attribute(namespace: dict[str, Any], name: str, renamed: dict[str, str]) -> Any:
    """Look up the old name of an attribute for the `__getattr__` of a module.

    Args:
        namespace: `globals()` of the module.
        renamed: The new name of each old one.

    Raises:
        AttributeError: If `name` is not an old name.
    """
    module = namespace["__name__"]
    if name not in renamed:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    new = renamed[name]
    if not _is_checked_by_import():
        warn_of_old_name(f"{module}.{name}", f"{module}.{new}", stacklevel=4)
    return getattr(sys.modules[module], new)


def moved_attribute(namespace: dict[str, Any], name: str, moved: dict[str, str]) -> Any:
    """Look up an attribute that another module has now, for the `__getattr__` of a module.

    Args:
        namespace: `globals()` of the module.
        moved: Module and name, joined by a dot, of each old name.

    Raises:
        AttributeError: If `name` is not an old name.
    """
    module = namespace["__name__"]
    if name not in moved:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    if not _is_checked_by_import():
        warn_of_old_name(f"{module}.{name}", moved[name], stacklevel=4)
    place, _, new = moved[name].rpartition(".")
    return getattr(importlib.import_module(place), new)


def _is_checked_by_import() -> bool:
    """Tell whether `from package import name` only tests that the name exists.

    It looks the name up again to bind it, and would warn twice.
    """
    # This function, its caller, the module's __getattr__, and then who looks the name up.
    return sys._getframe(3).f_code.co_name == "_handle_fromlist"
