"""Compilation of product graphs with torch's inductor, cached on disk.

On a CPU inductor writes C++, so a compiler is needed; the first time takes one to three minutes for
a small network. What it writes lies in a folder of the user's cache, under the graph, its shapes,
the version of torch and the machine, and is loaded from there in seconds by other processes and
later runs.
"""

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from landscape.files import cache_dir

# What torch reads to find its cache, and what it is left at in this process.
_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_LOGGERS = ("torch.utils.cpp_extension", "torch._inductor", "torch._functorch")


class CannotCompile(Exception):
    """Raised where a graph cannot be compiled, or what is kept of it cannot be loaded."""


def compiled(graph: fx.GraphModule, example: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Compile a graph of tensors for inputs like `example`, or load it.

    It is loaded if the same was compiled before.

    Raises:
        CannotCompile: If that is not possible; says why in one line.
    """
    folder = compile_cache()
    _check_writable(folder)
    try:
        with _cached_in(folder), _quiet(), torch.no_grad():
            from torch._inductor import standalone_compile

            # These loggers exist from here on.
            with _quiet():
                function: Any = standalone_compile(
                    graph, list(example), dynamic_shapes="from_example_inputs"
                )
                # What fails only when it is loaded or run fails here.
                function(*example)
    # Whatever a compiler, a loader or a cache raises: other strategies compute the same.
    except Exception as error:
        raise CannotCompile(_one_line(error)) from error
    return function


def compile_cache() -> Path:
    """Return the folder of compiled graphs.

    It is $TORCHINDUCTOR_CACHE_DIR, or a folder in the cache of this program.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    chosen = os.environ.get(_VARIABLE)
    # torch sets the variable to its default by itself.
    return Path(chosen) if chosen and chosen != default_cache_dir() else cache_dir() / "compiled"


def has_compiler() -> bool:
    """Tell whether there is a C++ compiler that inductor takes.

    Inductor looks for $CXX and then for the usual names.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    # torch raises what its search raises.
    except Exception:
        return False


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        raise CannotCompile(
            f"the cache {folder} cannot be written to ({error.strerror})"
        ) from error


@contextmanager
def _cached_in(folder: Path) -> Iterator[None]:
    """Set the folder in which torch stores what it compiles."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's messages about its compiler and damaged cache files.

    This module reports what matters of them.
    """
    names = [
        *_LOGGERS,
        *(name for name in logging.root.manager.loggerDict if name.startswith(_LOGGERS)),
    ]
    loggers = [logging.getLogger(name) for name in dict.fromkeys(names)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
