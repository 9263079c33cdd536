#!/bin/sh
# Dask's asynchronous client (distributed 2026.8.0) collects the results of all futures that are awaited at about the same time in one
# shared task. Cancelling one of these awaits (asyncio.wait_for at its timeout does that) cancels the shared task, and every other await
# raises CancelledError too, although its future is finished and nobody cancelled it. Code that takes this for lost work sends it again.
#
# Expected: one await ends, the others return their results.
# Output seen: of 40 awaits of finished futures, 1 cancelled: 40 raise CancelledError
# Way round: asyncio.shield(), or await each result in a task of its own that is never cancelled.
# PYTHON=... uses a Python that has distributed instead of installing it. Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet distributed==2026.8.0
    PYTHON="$folder/venv/bin/python"
fi
cd "$folder"
"$PYTHON" - <<'P'
import asyncio
import sys

import distributed
from distributed import Client, LocalCluster, wait

options = {"n_workers": 1, "processes": False, "dashboard_address": ":0", "asynchronous": True}


async def value(future):
    return await future


async def main():
    async with LocalCluster(**options) as cluster, Client(cluster, asynchronous=True) as client:
        futures = [client.submit(abs, -number, pure=False) for number in range(40)]
        await wait(futures)
        awaits = [asyncio.ensure_future(value(future)) for future in futures]
        # Five collections go to the scheduler; the awaits that are left share the next one.
        for _ in range(5):
            await asyncio.sleep(0)
        awaits[39].cancel()
        results = await asyncio.gather(*awaits, return_exceptions=True)
        assert all(future.status == "finished" for future in futures)
        return sum(isinstance(result, asyncio.CancelledError) for result in results)


assert distributed.__version__ == "2026.8.0", distributed.__version__
cancelled = asyncio.run(main())
print(f"of 40 awaits of finished futures, 1 cancelled: {cancelled} raise CancelledError")
sys.exit(cancelled != 40)
P
