"""Loggers as they were before a program that sets all of them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loggers_put_back() -> Iterator[None]:
    """open_clip_train's main gives its level to every logger that there is."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict}
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)
        for name, value in levels.items():
            logging.getLogger(name).setLevel(value)
