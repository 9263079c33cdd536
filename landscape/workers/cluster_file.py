"""Cluster files: YAML settings of the jobs of a queue.

A file names the queue, the number of workers, and the keyword arguments of dask_jobqueue's class
for that queue:

    cluster: slurm        # or pbs, sge, lsf, htcondor, oar, moab, local
    workers: 16
    cores: 4
    memory: 30GB
    walltime: "04:00:00"
    job_extra_directives: ["--gres=gpu:1"]
"""

import importlib
import inspect
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from landscape.errors import WorkerError
from landscape.suggestions import did_you_mean

# Names of the classes in dask_jobqueue, without "Cluster".
CLUSTERS = {
    "slurm": "SLURM",
    "pbs": "PBS",
    "sge": "SGE",
    "lsf": "LSF",
    "htcondor": "HTCondor",
    "oar": "OAR",
    "moab": "Moab",
    "local": "Local",
}
_OWN_KEYS = ("cluster", "workers")
_REQUIRED = ("cluster", "workers", "cores", "memory")
# Arguments that this package sets, or whose values YAML cannot hold.
_NOT_FOR_FILES = frozenset(
    (
        "self",
        "args",
        "kwargs",
        "job_kwargs",
        "base_class_kwargs",
        "n_workers",
        "job_cls",
        "loop",
        "asynchronous",
        "scheduler",
    )
    + (
        "scheduler_cls",
        "dashboard_address",
        "host",
        "silence_logs",
        "security",
        "shared_temp_directory",
        "config_name",
    )
)
# The constructors declare no types. A key that is not listed here takes a value of any type.
_TEXTS = (
    *(
        "queue",
        "account",
        "project",
        "walltime",
        "interface",
        "python",
        "local_directory",
        "log_directory",
        "job_name",
    ),
    *("job_mem", "shebang", "protocol", "resource_spec"),
)
_NUMBERS = ("workers", "cores", "processes", "job_cpu")
_LISTS = (
    "job_extra_directives",
    "job_script_prologue",
    "worker_extra_args",
    "job_directives_skip",
    "submit_command_extra",
)
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(_TEXTS, ((str,), "a text in quotes")),
    **dict.fromkeys(_NUMBERS, ((int,), "a whole number, at least 1")),
    **dict.fromkeys(_LISTS, ((list,), "a list")),
    "memory": ((str,), "a text such as 16GB"),
    "nanny": ((bool,), "true or false"),
    "scheduler_options": ((dict,), "a mapping"),
}
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class ClusterSettings:
    """The content of a cluster file.

    Attributes:
        kind: Name of the queue, one of CLUSTERS.
        num_workers: Dask workers to ask for.
        options: Keyword arguments of the class in dask_jobqueue.
    """

    kind: str
    num_workers: int
    options: dict[str, Any]


def read_cluster_file(path: Path) -> ClusterSettings:
    """Read a cluster file and check every key.

    Raises:
        WorkerError: If it cannot be read, or a key is unknown, missing or of the wrong type.
        MissingDependencyError: If dask_jobqueue is not installed.
    """
    content = _load(path)
    kind = content.get("cluster")
    if kind not in CLUSTERS:
        problem = "'cluster' is missing" if kind is None else f"cluster: {kind!r} is not known"
        raise WorkerError(
            f"{path}: {problem}: expected one of {', '.join(CLUSTERS)}, the queue that starts the "
            f"workers.{did_you_mean(str(kind), CLUSTERS)}"
        )
    keys = {*_OWN_KEYS, *keys_of(kind)}
    for key, value in content.items():
        if key not in keys:
            raise WorkerError(
                f"{path}: unknown key {key!r}; dask_jobqueue's {CLUSTERS[kind]}Cluster takes "
                f"{', '.join(sorted(keys))}.{did_you_mean(str(key), keys)}"
            )
        _check_type(path, key, value)
    for key in _REQUIRED:
        if key not in content:
            raise WorkerError(
                f"{path}: '{key}' is missing: {kind} jobs need it. Add a line such as `{key}: "
                f"{_example(key)}`."
            )
    options = {key: value for key, value in content.items() if key not in _OWN_KEYS}
    return ClusterSettings(kind, content["workers"], options)


def import_dask_jobqueue() -> ModuleType:
    """Import dask_jobqueue and keep the present handler of Ctrl-C.

    The import replaces that handler by one that exits with status 0.

    Raises:
        ImportError: If dask_jobqueue is not installed.
        WorkerError: If a thread other than the main one imports it first, which it does not allow.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        return importlib.import_module("dask_jobqueue")
    except ValueError as error:
        raise WorkerError(
            f"cluster: dask_jobqueue must be imported by the main thread ({error}); import it "
            "there."
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGINT, handler)


def cluster_class(kind: str) -> Any:
    """Return dask_jobqueue's class for a queue."""
    dask_jobqueue = import_dask_jobqueue()
    if kind == "local":
        from landscape.workers.bash_jobs import BashCluster

        return BashCluster
    return getattr(dask_jobqueue, f"{CLUSTERS[kind]}Cluster")


def keys_of(kind: str) -> set[str]:
    """Return the keyword arguments that dask_jobqueue takes for this queue.

    They come from the signatures of its constructors.
    """
    cluster = cluster_class(kind)
    constructors = [
        base.__init__
        for base in (*cluster.__mro__, *cluster.job_cls.__mro__)
        if "jobqueue" in base.__module__
    ]
    names = {
        name for constructor in constructors for name in inspect.signature(constructor).parameters
    }
    return names - _NOT_FOR_FILES


def _load(path: Path) -> dict[Any, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise WorkerError(f"{path}: more than {_MAX_BYTES} bytes, so it is no cluster file.")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkerError(f"{path}: the cluster file cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WorkerError(
            f"{path}: no YAML, but a cluster file is: {' '.join(str(error).split())}."
        ) from error
    if not isinstance(content, dict):
        raise WorkerError(
            f"{path}: {type(content).__name__}, but a mapping with the keys 'cluster' and "
            "'workers' is needed."
        )
    return content


def _check_type(path: Path, key: str, value: Any) -> None:
    kinds, words = _TYPES.get(key, ((object,), ""))
    # True is an int, and YAML reads 4:00:00 as the number 14400.
    right = isinstance(value, kinds) and not (
        isinstance(value, bool) and bool not in kinds and object not in kinds
    )
    if not right or (key in _NUMBERS and value < 1):
        raise WorkerError(
            f"{path}: {key}: {value!r}, expected {words}, such as `{key}: {_example(key)}`."
        )


def _example(key: str) -> str:
    examples = {
        "cluster": "slurm",
        "walltime": '"04:00:00"',
        "memory": "16GB",
        "nanny": "false",
        "scheduler_options": "{}",
    }
    default = "4" if key in _NUMBERS else '["--gres=gpu:1"]' if key in _LISTS else '"name"'
    return examples.get(key, default)
