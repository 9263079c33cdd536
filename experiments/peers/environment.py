"""An environment with the peers from PyPI in it, beside the one that runs this, whose packages it
sees and leaves alone.

Installing torch again would take 5 GB. So the new environment reads the folder of the packages that
are in use, its pip is told to keep their versions, and only what is missing is added, in the new
folder.
"""

import site
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from peers.processes import reason

_KEPT = ("torch", "torchvision", "numpy", "scipy")


@dataclass(frozen=True)
class Peer:
    """What to install for one peer.

    Attributes:
        package: Its name on PyPI.
        module: What is imported to see that it works.
        without: Packages that are installed without what they ask for.
        needs: What those need to be imported.
    """

    package: str
    module: str
    without: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


PEERS = (
    Peer("pyhessian", "pyhessian"),
    Peer("hessian-eigenthings", "hessian_eigenthings"),
    Peer("curvlinops-for-pytorch", "curvlinops"),
    # Its topopy asks for numpy below 2, which torch of today and everything else here do without;
    # it works with numpy 2.
    Peer(
        "landscaper",
        "landscaper",
        without=("landscaper", "topopy", "nglpy"),
        needs=(
            "gudhi",
            "treelib",
            "coloraide",
            "drawsvg",
            "networkx",
            "scikit-learn",
            "cloudpickle",
        ),
    ),
)


@dataclass(frozen=True)
class Environment:
    """Attributes: python, the interpreter; versions of the peers that work; failures, why the
    others do not.
    """

    python: str
    versions: Mapping[str, str]
    failures: Mapping[str, str]


def make_environment(folder: Path, peers: Sequence[Peer] = PEERS) -> Environment:
    """Install what is not there yet. A peer that cannot be installed or imported is a failure, with
    the reason.
    """
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        inside = subprocess.check_output(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        seen = dict.fromkeys(
            [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
        )
        Path(inside.strip(), "packages_in_use.pth").write_text(
            "".join(f"{path}\n" for path in seen)
        )
    keep = folder / "constraints.txt"
    keep.write_text("".join(f"{name}=={version(name).partition('+')[0]}\n" for name in _KEPT))
    versions, failures = {}, {}
    for peer in peers:
        failure = _import(python, peer) and (_install(python, peer, keep) or _import(python, peer))
        if failure:
            failures[peer.module] = failure
        else:
            ask = f"from importlib.metadata import version; print(version({peer.package!r}))"
            versions[peer.module] = subprocess.check_output(
                [str(python), "-c", ask], text=True
            ).strip()
    return Environment(str(python), versions, failures)


def _install(python: Path, peer: Peer, keep: Path) -> str:
    """Why it failed, or nothing."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    with_dependencies = [
        *pip,
        "--constraint",
        str(keep),
        *(peer.needs or (() if peer.without else (peer.package,))),
    ]
    return _run(with_dependencies) or (
        _run([*pip, "--no-deps", *peer.without]) if peer.without else ""
    )


def _import(python: Path, peer: Peer) -> str:
    return _run([str(python), "-W", "ignore", "-c", f"import {peer.module}"])


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return reason(done.stderr, done.returncode) if done.returncode else ""
