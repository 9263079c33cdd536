"""A Slurm of one node in a folder, run as root from Debian's packages: munged, slurmctld and slurmd
on free ports.

    apt-get install slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins
    python -m tests.helpers.slurm_node FOLDER  # runs until Ctrl-C; prints the SLURM_CONF to export

No systemd, no cgroups, no accounting: `sbatch`, `squeue`, `scancel` and arrays work, `sacct` does
not.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# Seconds until the node must be idle, and for jobs and programs to end.
START_TIMEOUT = 30
END_TIMEOUT = 15


def missing() -> str:
    """Say what is missing for a node here; nothing if it can start."""
    if os.geteuid() != 0:
        return "Slurm's programs must be started as root"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


@contextmanager
def slurm_node(folder: Path) -> Iterator[dict[str, str]]:
    """Run a Slurm of one node; yields the variables that its commands need."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    configuration = folder / "slurm.conf"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 8 // 10
    configuration.write_text(
        CONFIGURATION.format(
            host=short_host_name(),
            folder=folder,
            ports=free_ports(2),
            cpus=os.cpu_count(),
            memory=memory,
        )
    )
    variables = {"SLURM_CONF": str(configuration)}
    files = {
        "key-file": "key",
        "socket": "socket",
        "pid-file": "pid",
        "log-file": "log",
        "seed-file": "seed",
    }
    munge = [f"--{option}={folder}/munge.{name}" for option, name in files.items()]
    with ExitStack() as stack:
        stack.enter_context(running(["munged", "--foreground", "--force", *munge], variables))
        wait_for(lambda: (folder / "munge.socket").exists(), "munged")
        stack.enter_context(running(["slurmctld", "-D", "-c"], variables))
        stack.enter_context(running(["slurmd", "-D"], variables))
        wait_for(
            lambda: "idle" in output(["sinfo", "-h", "-o", "%T"], variables),
            f"an idle node (logs in {folder})",
        )
        try:
            yield variables
        finally:
            output(["scancel", "--user=root"], variables)
            wait_for(
                lambda: output(["squeue", "-h"], variables) == "",
                "the end of all jobs",
                END_TIMEOUT,
            )


@contextmanager
def running(command: list[str], variables: dict[str, str]) -> Iterator[None]:
    """Run a program until the block ends."""
    options = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "start_new_session": True,
    }
    process = subprocess.Popen(command, env=os.environ | variables, **options)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def output(command: list[str], variables: dict[str, str]) -> str:
    result = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, timeout=60
    )
    return result.stdout.strip()


def wait_for(condition: Callable[[], bool], what: str, timeout: float = START_TIMEOUT) -> None:
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > timeout:
            raise TimeoutError(f"waited {timeout} s for {what}")
        time.sleep(0.2)


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def short_host_name() -> str:
    return socket.gethostname().split(".")[0]


if __name__ == "__main__":
    # Not sigwait: without a handler SIGTERM ends this process at once, and leaves Slurm running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), slurm_node(Path(sys.argv[1]).resolve()) as needed:
        print(*(f"export {name}={value}" for name, value in needed.items()), flush=True)
        signal.pause()
