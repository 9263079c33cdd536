"""Several processes of one command on this machine, which share a model.

They begin and end together. Each gets the variables that torchrun sets. The first that fails ends
all. A signal to this process reaches all. All end with this process, however that ends. Imports
nothing heavy.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from landscape import ranks, threads
from landscape.errors import WorkerDied
from landscape.workers.child import environment_of_child
from landscape.workers.serve import end_when_closed

# Seconds: between two checks, for the others to react to a failure, and to end after a signal.
_BETWEEN_LOOKS = 0.05
_TO_NOTICE = 10.0
_TO_STOP = 10.0
# Without -P, a random.py in the current folder would be imported instead of the library's.
COMMAND = (sys.executable, "-P", "-m", "landscape")
# The descriptor that closes when the process that started this one ends.
_LIFE = "LANDSCAPE_LIFE"
_KEPT = "results so far are saved; run the same command to resume."


def launch(arguments: Sequence[str], count: int) -> int:
    """Run `landscape ARGUMENTS` in `count` connected processes and wait for them.

    Returns:
        Exit status of the first process that failed; 0 if none did.

    Raises:
        WorkerDied: If a process was killed.
    """
    with tempfile.TemporaryDirectory(prefix="landscape-shards-") as folder:
        launched = _Launched(arguments, count, os.path.join(folder, "reporter"))
        try:
            return launched.wait()
        except BaseException:
            # The error is reported on one line, by this process.
            launched.claim()
            raise
        finally:
            launched.end()


class _Launched:
    """The processes that were started."""

    def __init__(self, arguments: Sequence[str], count: int, reporter: str) -> None:
        self.reporter = reporter
        self._life, self._keep = os.pipe()
        shared = _environment(count, reporter) | {_LIFE: str(self._life)}
        self.processes: list[subprocess.Popen[bytes]] = []
        try:
            for number in range(count):
                self.processes.append(
                    subprocess.Popen(
                        [*COMMAND, *arguments],
                        env=shared | {"RANK": str(number), "LOCAL_RANK": str(number)},
                        stdin=subprocess.DEVNULL,
                        pass_fds=(self._life,),
                        start_new_session=True,
                    )
                )
        except BaseException:
            self.end()
            raise

    def claim(self) -> bool:
        """Claim the report of the failure.

        False if a process has reported it already.
        """
        return ranks.claim_report(self.reporter, "launcher")

    def wait(self) -> int:
        """Wait for all processes, or for a failure; see `launch`.

        After a failure the others get time to react.
        """
        while not (failed := self._failed()):
            if all(process.poll() == 0 for process in self.processes):
                return 0
            time.sleep(_BETWEEN_LOOKS)
        number, status = failed
        if status < 0 and self.claim():
            meaning = ", perhaps for memory" if -status == signal.SIGKILL else ""
            raise WorkerDied(
                f"process {number} of {len(self.processes)} was killed by signal "
                f"{-status}{meaning}, so all stop; {_KEPT}"
            )
        self._wait_for_all(_TO_NOTICE)
        return status if status > 0 else WorkerDied.exit_code

    def _failed(self) -> tuple[int, int] | None:
        """Return number and status of a failed process, if any.

        A process that was killed comes first, since the others fail because of it.
        """
        statuses = [(number, process.poll()) for number, process in enumerate(self.processes)]
        failed = [(number, status) for number, status in statuses if status]
        return min(failed, key=lambda process: process[1] > 0, default=None)

    def _wait_for_all(self, seconds: float) -> None:
        limit = time.monotonic() + seconds
        while (
            any(process.poll() is None for process in self.processes) and time.monotonic() < limit
        ):
            time.sleep(_BETWEEN_LOOKS)

    def end(self) -> None:
        """Ask running processes to end; kill those that do not."""
        try:
            self._send(signal.SIGTERM)
            self._wait_for_all(_TO_STOP)
        finally:
            self._send(signal.SIGKILL)
            for process in self.processes:
                process.wait()
            for descriptor in (self._life, self._keep):
                os.close(descriptor)

    def _send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


def _environment(count: int, reporter: str) -> dict[str, str]:
    """Build the environment variables that all processes share."""
    place = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": _free_port(),
    }
    variables = environment_of_child({**place, ranks.REPORTER: reporter})
    # Unless the user chose a number of threads, this process has set these variables itself.
    return {
        name: value
        for name, value in variables.items()
        if not threads.is_automatic() or name not in threads.NUM_THREADS
    }


def _free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def is_launched() -> bool:
    """Tell whether `launch` has started this process."""
    return _LIFE in os.environ


def end_with_launcher() -> None:
    """Make this process end with the one that launched it.

    It ends however that one ends. No effect in a process that was not launched.
    """
    if (life := os.environ.get(_LIFE)) is not None and Path(f"/proc/self/fd/{life}").exists():
        os.set_inheritable(int(life), False)
        end_when_closed(int(life))
