"""How a child process of a pool begins and ends. Does not know what it works on."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import connection
from typing import Any


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
