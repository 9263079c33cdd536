"""The memory of this machine that a process may take.

Imports nothing heavy, and no torch.
"""

import ctypes
import os
import re
import resource
import sys
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Count the bytes that a process may safely take.

    This is the least of: what the kernel calls available, what the control group of this process
    leaves (the limit of a container or of a batch system), and what its address-space limit leaves.
    """
    left = [_available(), *_left_by_control_groups(), *_left_by_resource_limit()]
    return max(0, min(left))


def return_freed_memory() -> None:
    """Return freed memory from the C library to the system.

    glibc keeps small pieces; other libraries are left alone.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _available() -> int:
    """Return MemAvailable if reported, else the free pages."""
    try:
        match = re.search(
            r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE
        )
    except OSError:
        match = None
    return int(match[1]) * 1024 if match else _pages("SC_AVPHYS_PAGES")


def _pages(name: str) -> int:
    return os.sysconf(name if name in os.sysconf_names else "SC_PHYS_PAGES") * os.sysconf(
        "SC_PAGE_SIZE"
    )


def _left_by_control_groups() -> list[int]:
    """Return the bytes that limits of control groups leave.

    For versions 1 and 2. Page cache that can be dropped counts as free. An empty list means no
    limit.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (
            (
                _CGROUPS / "memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            )
            if controllers
            else (_CGROUPS, ("memory.max", "memory.current", "inactive_file"))
        )
        group = root / path.lstrip("/")
        # A batch system limits a group above that of the process. Inside a container the group is
        # often the root of the mounted tree, whatever its path is outside.
        for folder in [group, *(above for above in group.parents if above.is_relative_to(root))]:
            left += _left_by_control_group(folder, *names)
    return left


def _left_by_control_group(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    try:
        allowed, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
        match = re.search(rf"^{cache} (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return []
    return [int(allowed) - used + (int(match[1]) if match else 0)] if allowed.isdigit() else []


def _left_by_resource_limit() -> list[int]:
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError, ValueError):
        return []
    return [] if soft == resource.RLIM_INFINITY else [soft - size]


def peak_memory() -> int:
    """Return the peak bytes of this process so far."""
    try:
        # The value of getrusage is at least the size of the process that started this one.
        match = re.search(
            r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE
        )
    except OSError:
        match = None
    if match:
        return 1024 * int(match[1])
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size
