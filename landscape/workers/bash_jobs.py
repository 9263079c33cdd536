"""Jobs on this machine, to try out a cluster file without a queue.

The LocalJob of dask_jobqueue starts only scripts of one line. It also stops its worker when nobody
reads what the worker prints.
"""

import os
import signal
import subprocess
from pathlib import Path
from typing import ClassVar

from dask_jobqueue.local import LocalCluster, LocalJob


class BashJob(LocalJob):
    """A job script that bash runs on this machine."""

    _processes: ClassVar[dict[str, "subprocess.Popen[bytes]"]] = {}

    async def _submit_job(self, script_filename: str) -> str:
        process = subprocess.Popen(
            ["bash", "-c", Path(script_filename).read_text()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._processes[str(process.pid)] = process
        return str(process.pid)

    @classmethod
    async def _close_job(cls, job_id: str, cancel_command: str) -> None:
        process = cls._processes.pop(job_id, None)
        if process is not None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            # The processes of the job have already ended.
            except ProcessLookupError:
                pass
            process.wait()


class BashCluster(LocalCluster):
    """Workers that bash starts on this machine."""

    job_cls = BashJob
