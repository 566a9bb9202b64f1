"""How the child processes of a pool begin and end. Does not know what they work on."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any

from cohort_scorer.errors import MachineError


@contextmanager
def pool(n_workers: int, killed: MachineError) -> Iterator[ProcessPoolExecutor]:
    """Hold child processes, spawned and not forked: the parent may hold threads and CUDA.

    Whatever ends the block early ends the children at once: nobody waits for what they were at.

    Args:
        n_workers: How many; they begin when there is something to do.
        killed: What to tell where a child was killed from outside, as the system does when memory is short.

    Raises:
        MachineError: `killed`.
    """
    with ProcessPoolExecutor(n_workers, multiprocessing.get_context("spawn"), begin) as children:
        try:
            yield children
        except BrokenProcessPool as fault:
            raise killed from fault
        except BaseException:
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def begin() -> None:
    """Initialise a child: Ctrl-C ends it at once and without a word, and it does not outlive its parent.

    A parent that was killed tells nobody: its children would finish their task, and then wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), name="parent", daemon=True).start()


def _end_with(sentinel: Any) -> None:
    connection.wait([sentinel])
    os._exit(1)
