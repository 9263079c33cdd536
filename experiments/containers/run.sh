#!/bin/sh
# Write checkpoints with the packages themselves, in a throw-away environment, and check what landscape reads from them.
# Usage: sh experiments/containers/run.sh PYTHON, a Python that has landscape and torch; prints the table, exits 1 if a row fails.
set -e
python=${1:-python}
here=$(cd "$(dirname "$0")" && pwd)
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"$python" -m venv --without-pip "$environment"
# The packages of that Python are seen, so that torch is not installed again.
"$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' > "$environment/lib/$("$python" -c 'import sys; print(f"python{sys.version_info[0]}.{sys.version_info[1]}")')/site-packages/base.pth"
install() { "$python" -m pip --python "$environment/bin/python" install --quiet "$@"; }
install transformers==5.24.0 lightning==2.6.6 yacs==0.1.8 peft==0.21.2 accelerate==1.15.0 omegaconf==2.4.0 fvcore
install fastai==2.8.12 keras==3.15.1 mmengine==0.10.7
# composer asks for an older torch than the one that is here.
install --no-deps mosaicml==0.32.1 torch-optimizer pytorch_ranger coolname py-cpuinfo lazy-importer tabulate gitpython gitdb smmap importlib_metadata zipp
PYTHONPATH="$here/../..:$PYTHONPATH" OMP_NUM_THREADS=1 "$environment/bin/python" "$here/trainers.py"
