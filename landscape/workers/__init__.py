"""Worker processes, and the dispatch of units of work to them.

Knows nothing of Hessians; imports no torch.
"""

from landscape.workers.child import ChildProcess
from landscape.workers.dispatch import Done, Lost, call_all, dispatch
from landscape.workers.pools import ExecutorPool, InlinePool, LocalPool, Pool

__all__ = [
    "ChildProcess",
    "Done",
    "ExecutorPool",
    "InlinePool",
    "LocalPool",
    "Lost",
    "Pool",
    "call_all",
    "dispatch",
]
