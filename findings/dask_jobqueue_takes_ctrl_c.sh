#!/bin/sh
# dask-jobqueue 0.9.0 (distributed 2026.8.0): importing it replaces the program's handler of SIGINT by one that exits with status 0,
# and only the main thread may import it.
#
# Expected: an import leaves the signals of a program alone. Seen: a program that imports dask_jobqueue, be it for SLURMCluster,
# loses its own handler of Ctrl-C, and Python's KeyboardInterrupt: Ctrl-C then ends it as if all were well. The line stands at the
# top of dask_jobqueue/runner.py, which is for programs under mpirun. From another thread the import raises ValueError. What a
# library does: keep the handler before the import and set it again after it.
# Output seen: before: default_int_handler; after: <lambda>; Ctrl-C ends the program with status 0
#              another thread: ValueError: signal only works in main thread of the main interpreter
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check distributed==2026.8.0 dask==2026.8.0 dask-jobqueue==0.9.0
cat > "$folder/handler.py" <<'P'
import signal
import subprocess
import sys

CTRL_C = """
import signal, sys
if len(sys.argv) > 1:
    import dask_jobqueue
signal.raise_signal(signal.SIGINT)
"""
THREAD = """
import threading
def load():
    try:
        import dask_jobqueue
        print("imported")
    except ValueError as error:
        print(f"{type(error).__name__}: {error}")
thread = threading.Thread(target=load)
thread.start()
thread.join()
"""


def run(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


before = signal.getsignal(signal.SIGINT).__name__
import dask_jobqueue  # noqa: E402, F401

after = signal.getsignal(signal.SIGINT).__name__
without, with_import = run(CTRL_C).returncode, run(CTRL_C, "import").returncode
thread = run(THREAD).stdout.strip()
print(f"before: {before}; after: {after}; Ctrl-C ends the program with status {with_import}")
print(f"another thread: {thread}")
seen = before != after and without != 0 and with_import == 0 and thread.startswith("ValueError: signal only works in main thread")
sys.exit(0 if seen else 1)
P
"$folder/venv/bin/python" "$folder/handler.py"
