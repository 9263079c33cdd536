#!/bin/sh
# dask-jobqueue 0.9.0 (distributed 2026.8.0): a job that the queue refuses raises nothing. scale(1) returns, the refused job stays
# among the cluster's workers, so that scale(1) again submits nothing, and close() raises an AssertionError without the reason.
#
# Expected: the RuntimeError with sbatch's words, raised where the program can see it. Seen: it is raised in a task of the event
# loop that nobody waits for, and is only logged (tornado.application). close() asserts that every job has the status closing,
# closed or failed; a refused one is still "created" for as long as anything refers to it (they are held weakly).
# What a library does: submit by `cluster.sync(...)` and wait for the jobs; close() within try.
# Any refusal does; here `sbatch` is a program that says what Slurm says of an unknown partition.
# Output seen: scale(1) raised nothing; logged RuntimeError: Command exited with non-zero exit code.
#              after scale(1) again: sbatch called 1 time, cluster.workers {'SLURMCluster-0': 'created'}, cluster.status running
#              close() raises AssertionError: Status.created
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check distributed==2026.8.0 dask==2026.8.0 dask-jobqueue==0.9.0
mkdir "$folder/bin"
cat > "$folder/bin/sbatch" <<P
#!/bin/sh
echo called >> "$folder/calls"
echo "sbatch: error: invalid partition specified: nowhere" >&2
exit 1
P
chmod +x "$folder/bin/sbatch"
cat > "$folder/refused.py" <<'P'
import logging
import time
from pathlib import Path

from dask_jobqueue import SLURMCluster


class Errors(logging.Handler):
    """Keep what the event loop logs of exceptions that nobody waits for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def emit(self, record):
        self.seen.append(f"{record.exc_info[0].__name__}: {record.exc_info[1]}")


def main():
    log = logging.getLogger("tornado.application")
    errors = Errors()
    log.handlers, log.propagate = [errors], False
    options = {"host": "127.0.0.1", "dashboard_address": ":0"}
    cluster = SLURMCluster(cores=1, memory="500MB", queue="nowhere", scheduler_options=options)
    cluster.scale(1)
    end = time.monotonic() + 30
    while not errors.seen and time.monotonic() < end:
        time.sleep(0.1)
    logged = errors.seen[0].splitlines()[0] if errors.seen else "nothing"
    print(f"scale(1) raised nothing; logged {logged}")
    cluster.scale(1)
    time.sleep(3)
    calls, jobs = len(Path("calls").read_text().splitlines()), dict(cluster.workers)
    statuses = {name: job.status.name for name, job in jobs.items()}
    times = "1 time" if calls == 1 else f"{calls} times"
    print(f"after scale(1) again: sbatch called {times}, cluster.workers {statuses}, cluster.status {cluster.status.name}")
    closing = "nothing"
    try:
        cluster.close()
    except BaseException as error:
        closing = f"{type(error).__name__}: {error}"
    print(f"close() raises {closing}")
    refused = "RuntimeError: Command exited with non-zero exit code."
    seen = (logged, calls, statuses, closing)
    return seen == (refused, 1, {"SLURMCluster-0": "created"}, "AssertionError: Status.created")


if __name__ == "__main__":
    raise SystemExit(not main())
P
cd "$folder"
PATH="$folder/bin:$PATH" venv/bin/python refused.py
