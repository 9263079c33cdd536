#!/bin/sh
# dask-jobqueue 0.9.0 (distributed 2026.8.0): its LocalCluster starts no worker if the job script has a prologue such as
# `export A=1`, and says so in a log only; close() then raises a TypeError.
#
# Expected: job_script_prologue is "commands to add to script before launching worker" and works for every queue. Seen:
# LocalCluster does not run the script by a shell: it splits its text at spaces and takes the first word for the program, without
# the line `#!/usr/bin/env bash` that other queues have. What a library does: a job class of its own that runs the script by bash.
# Output seen: without a prologue: workers 1, errors logged [], close() raises nothing
#              with ['export A=1']: workers 0, errors logged ["FileNotFoundError: [Errno 2] No such file or directory: 'export'"],
#                close() raises TypeError
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check distributed==2026.8.0 dask==2026.8.0 dask-jobqueue==0.9.0
cat > "$folder/prologue.py" <<'P'
import logging
import time

from dask_jobqueue.local import LocalCluster

SECONDS = 20


class Errors(logging.Handler):
    """Keep what the event loop logs of exceptions that nobody waits for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def emit(self, record):
        self.seen.append(f"{record.exc_info[0].__name__}: {record.exc_info[1]}")


def start(prologue):
    log = logging.getLogger("tornado.application")
    errors = Errors()
    log.handlers, log.propagate = [errors], False
    options = {"host": "127.0.0.1", "dashboard_address": ":0"}
    cluster = LocalCluster(cores=1, memory="500MB", job_script_prologue=prologue, scheduler_options=options)
    cluster.scale(1)
    end = time.monotonic() + SECONDS
    while not cluster.scheduler.workers and not errors.seen and time.monotonic() < end:
        time.sleep(0.1)
    workers, logged, closing = len(cluster.scheduler.workers), list(errors.seen), "nothing"
    try:
        cluster.close()
    except Exception as error:
        closing = type(error).__name__
    return workers, logged, closing


def main():
    plain, prologue = start([]), start(["export A=1"])
    print("without a prologue: workers {}, errors logged {}, close() raises {}".format(*plain))
    print("with ['export A=1']: workers {}, errors logged {}, close() raises {}".format(*prologue))
    missing = ["FileNotFoundError: [Errno 2] No such file or directory: 'export'"]
    return plain == (1, [], "nothing") and prologue == (0, missing, "TypeError")


if __name__ == "__main__":
    raise SystemExit(not main())
P
cd "$folder"
venv/bin/python prologue.py
