"""Sharpness during training: measured within a budget, certified and recorded.

Measuring has no effect on the training. The names below are loaded on first use; those for
Lightning and for the Hugging Face Trainer need these packages.
"""

import importlib
from typing import Any

_EXPORTS = {
    "CsvSink": "sinks",
    "HuggingFaceMonitor": "huggingface",
    "LightningMonitor": "lightning",
    "LiveLine": "sinks",
    "Measurement": "measurement",
    "MonitorRecord": "reading",
    "SharpnessMonitor": "monitor",
    "Sink": "sinks",
    "Spectrum": "measurement",
    "TensorBoardSink": "sinks",
    "Threshold": "measurement",
    "UpdateSharpness": "measurement",
    "WandbSink": "sinks",
    "is_record": "reading",
    "read_record": "reading",
}

__all__ = [
    "CsvSink",
    "HuggingFaceMonitor",
    "LightningMonitor",
    "LiveLine",
    "Measurement",
    "MonitorRecord",
    "SharpnessMonitor",
    "Sink",
    "Spectrum",
    "TensorBoardSink",
    "Threshold",
    "UpdateSharpness",
    "WandbSink",
    "is_record",
    "read_record",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
