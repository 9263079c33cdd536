"""Install pinned packages beside this project, measure the second derivatives of their operations,
print the tables.

Usage: python experiments/second_derivatives/run.py [--folder FOLDER] [--only WORD ...]

Needs a Python that has landscape, torch and triton; nothing is installed into it. Every package
goes into a folder of its own and every operation runs in a process of its own, about 20 minutes in
all on one core. A folder that is given is kept and used again. Not run by the tests.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
# What the packages import beside torch, and the models of the second table.
_TOGETHER = ("einops==0.8.2", "transformers==5.24.0")
_LIMIT = 300
# Without a GPU there is no answer; a missing answer is a row as well.
_NOT_RUN = (
    (
        "mamba-ssm",
        "selective_scan_fn, mamba_inner_fn, mamba_split_conv1d_scan_combined",
        "compiled CUDA extensions",
    ),
    ("causal-conv1d", "causal_conv1d_fn", "a compiled CUDA extension"),
    ("accelerated-scan", "warp.scan", "CUDA"),
    ("torch", "associative_scan, pointwise, on CUDA", "a GPU"),
)
_HEADER = (
    "package",
    "operation",
    "first gradient",
    "double backward",
    "jvp of gradient",
    "batched / vmap",
    "audit",
    "run in",
)
_MODELS_HEADER = ("class", "parameters", "product against differences", "eigsh, k = 2", "audit")


def pins() -> dict[str, str]:
    lines = (HERE / "packages.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def make_environment(folder: Path) -> Path:
    """A Python that sees the packages of this one, with what all need beside them."""
    environment = folder / "environment"
    if not environment.exists():
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True
        )
        inside = (
            environment
            / "lib"
            / f"python{sys.version_info[0]}.{sys.version_info[1]}"
            / "site-packages"
        )
        (inside / "packages_in_use.pth").write_text(sysconfig.get_path("purelib") + "\n")
        python = str(environment / "bin" / "python")
        subprocess.run(
            [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *_TOGETHER],
            check=True,
        )
    return environment / "bin" / "python"


def install(folder: Path, name: str) -> Path:
    """One package without its dependencies, in a folder of its own."""
    target = folder / name
    if not target.exists():
        # mamba-ssm looks for a wheel on GitHub and compiles CUDA code unless it is told otherwise.
        environment = {**os.environ, "MAMBA_FORCE_BUILD": "TRUE", "MAMBA_SKIP_CUDA_BUILD": "TRUE"}
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
        ]
        subprocess.run(
            [*pip, "--target", str(target), f"{name}=={pins()[name]}"], check=True, env=environment
        )
    return target


def ask(python: Path, script: str, key: str, paths: Sequence[Path]) -> Mapping[str, str]:
    """The row that a script prints for a key; {"failed": reason} if there is none."""
    path = os.pathsep.join(
        [*map(str, paths), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
    )
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [str(python), str(HERE / script), key]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=_LIMIT
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer in {_LIMIT} s"}
    if done.returncode:
        return {
            "failed": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][
                :120
            ]
        }
    row: Mapping[str, str] = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def operation_cells(key: str, row: Mapping[str, str]) -> tuple[str, ...]:
    package, _, name = key.partition("/")
    release = pins().get(package) or (version(package) if package == "torch" else "")
    label = f"{package} {release.partition('+')[0]}".rstrip()
    if "failed" in row:
        return (label, name, f"not run: {row['failed']}", "", "", "", "", "")
    double = row["double"]
    if row["double_by_backward"].partition(" ")[0] != double.partition(" ")[0]:
        double = f"autograd.grad: {double}; .backward: {row['double_by_backward']}"
    where = f"{row['how']}, {row['dtype']}"
    return (
        label,
        name,
        row["first"],
        double,
        row["jvp"],
        f"{row['batched']} / {row['vmap']}",
        row["audit"],
        where,
    )


def model_cells(name: str, row: Mapping[str, str]) -> tuple[str, ...]:
    if "failed" in row or row["built"] != "yes":
        return (name, "", f"not run: {row.get('failed', row.get('built'))}", "", "")
    return (name, row["n"], row["product"], row["eigsh"], row["audit"])


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def tables(folder: Path, only: Sequence[str]) -> Iterator[str]:
    """The lines of both tables, each as soon as it is measured."""
    sys.path.insert(0, str(HERE))
    from models import CONFIGS
    from operations import load_operations

    def is_wanted(text: str) -> bool:
        return not only or any(word in text for word in only)

    python = make_environment(folder)
    yield from (line(_HEADER), line(["---"] * len(_HEADER)))
    for key in filter(is_wanted, load_operations()):
        package = key.partition("/")[0]
        paths = [install(folder, package)] if package in pins() else []
        yield line(operation_cells(key, ask(python, "measure.py", key, paths)))
    for package, name, needs in _NOT_RUN:
        if is_wanted(f"{package}/{name}"):
            yield line((package, name, f"not run: needs {needs}", "", "", "", "", ""))
    yield from ("", line(_MODELS_HEADER), line(["---"] * len(_MODELS_HEADER)))
    for name in filter(is_wanted, CONFIGS):
        paths = [install(folder, "mambapy")] if "mambapy" in name else []
        yield line(model_cells(name, ask(python, "models.py", name, paths)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, help="Keeps the packages; a temporary one by default."
    )
    parser.add_argument(
        "--only", nargs="+", default=(), help="Operations and models whose name holds one of these."
    )
    options = parser.parse_args()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "triton"))
    print(
        f"{date.today()}, Python {platform.python_version()}, {packages}, {platform.machine()}, "
        "one thread\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as temporary:
        for text in tables(options.folder or Path(temporary), options.only):
            print(text, flush=True)


if __name__ == "__main__":
    main()
