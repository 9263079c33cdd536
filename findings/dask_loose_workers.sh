#!/bin/sh
# distributed 2026.8.0: calls submitted with `workers=[w], allow_other_workers=True` stay pending for good once w has left while
# no other worker was there, although a free worker joins later and runs every other call.
#
# Expected: `allow_other_workers=True` makes `workers` a preference, as its documentation says; with another worker there from
# the start it is (the calls move when w leaves). Seen: a call that nobody can run waits as "no-worker", and a worker that joins
# is offered only those waiting calls whose `workers` name it; the preference is not looked at there
# (Scheduler.bulk_schedule_unrunnable_after_adding_worker). What a library does: submit such calls again, or without `workers`.
# Output seen: after 8 s beside a free worker: loose calls ['pending', 'pending', 'pending'], states {'no-worker'};
#              calls without `workers`: finished
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check distributed==2026.8.0
cat > "$folder/loose.py" <<'P'
import time

from distributed import Client, LocalCluster

SECONDS = 8


def wait_for(condition, what):
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited 60 s for {what}")
        time.sleep(0.1)


def main():
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        workers = cluster.scheduler.workers
        wait_for(lambda: workers, "the first worker")
        loosely = {"workers": list(workers), "allow_other_workers": True, "pure": False}
        loose = [client.submit(time.sleep, 3, **loosely) for _ in range(3)]
        wait_for(lambda: len(cluster.scheduler.tasks) == 3, "the calls")
        cluster.scale(0)
        wait_for(lambda: not workers, "the first worker to leave")
        cluster.scale(1)
        wait_for(lambda: workers, "the second worker")
        time.sleep(SECONDS)
        free = client.submit(sum, [1, 2])
        free.result(timeout=60)
        statuses = [future.status for future in loose]
        states = {cluster.scheduler.tasks[future.key].state for future in loose}
        print(f"after {SECONDS} s beside a free worker: loose calls {statuses}, states {states};")
        print(f"calls without `workers`: {free.status}")
        return statuses == ["pending"] * 3 and states == {"no-worker"} and free.status == "finished"


if __name__ == "__main__":
    raise SystemExit(not main())
P
cd "$folder"
venv/bin/python loose.py
