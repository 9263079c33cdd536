#!/bin/sh
# distributed 2026.8.0: the scheduler keeps an entry for every client.submit of a program that always has a call open, although
# it has forgotten all calls but those: the metadata of the span "default" is a list that is never shortened.
#
# Expected: memory of the scheduler as large as the calls it knows. Seen: every submit appends {'type': 'Future'} to
# Span.metadata["collections"]; the list goes only with its span, when not a single task of it is left, which a program that
# keeps its workers busy never reaches. What a library does: let all calls end from time to time, or submit in `span(name)`
# blocks of limited length.
# Output seen: 1000 calls, at most 2 open at a time: the scheduler knows 1 task, the span's list has 1000 entries
#              ({'type': 'Future'})
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check distributed==2026.8.0
cat > "$folder/spans.py" <<'P'
import time

from distributed import Client, LocalCluster

CALLS = 1000


def nothing(number):
    return number


def main():
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as client:
        open_call = client.submit(nothing, 0)
        for number in range(1, CALLS):
            # The next call is sent before the last is let go, as a program does that keeps a worker busy.
            following = client.submit(nothing, number)
            open_call.result(timeout=60)
            open_call = following
        open_call.result(timeout=60)
        end = time.monotonic() + 30
        while len(cluster.scheduler.tasks) > 1 and time.monotonic() < end:
            time.sleep(0.1)
        known = len(cluster.scheduler.tasks)
        (span,) = cluster.scheduler.extensions["spans"].spans.values()
        entries = span.metadata["collections"]
        print(
            f"{CALLS} calls, at most 2 open at a time: the scheduler knows {known} task{'s' * (known != 1)}, "
            f"the span's list has {len(entries)} entries ({entries[0]})"
        )
        return known == 1 and len(entries) == CALLS


if __name__ == "__main__":
    raise SystemExit(not main())
P
cd "$folder"
venv/bin/python spans.py
