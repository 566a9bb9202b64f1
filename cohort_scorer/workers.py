"""Child processes that do tasks side by side, and how they begin and end. Does not know what the tasks are.

concurrent.futures' own pool shares one pipe among its children: where one is killed while it writes there, or while
another is being started, Python 3.11 waits for ever. Here each child has a pipe of its own, whose end is always heard.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any

from cohort_scorer.errors import MachineError

Submit = Callable[..., Future[Any]]
"""submit(work, *arguments): have a child call a function of a module; its result or what it raised comes back."""


_to_parent: Connection | None = None


def tell(something: Any) -> None:
    """Let a task say something to the parent before its end."""
    if _to_parent is not None:
        _to_parent.send((False, something, None))


@contextmanager
def pool(n_workers: int, killed: MachineError, heard: Callable[[Any], None] = lambda _: None) -> Iterator[Submit]:
    """Hold child processes, spawned and not forked: the parent may hold threads and CUDA.

    The end of the block, early or not, ends the children at once: nobody waits for what they were at.

    Args:
        n_workers: How many.
        killed: What a task raises whose child was killed from outside, as the system does when memory is short.
        heard: Called with whatever a task tells, in the thread that waits for the task: several may call at once.
    """
    mine = threading.local()
    children: SimpleQueue[Connection] = SimpleQueue()

    def take_child() -> None:
        mine.child = children.get()

    def answer(task: tuple[Callable[..., Any], tuple[Any, ...]] | None) -> tuple[bool, Any, Exception | None]:
        try:
            if task:
                mine.child.send(task)
            told: tuple[bool, Any, Exception | None] = mine.child.recv()
        except (EOFError, OSError) as fault:
            raise killed from fault
        return told

    def call(work: Callable[..., Any], *arguments: Any) -> Any:
        ended, result, error = answer((work, arguments))
        while not ended:
            heard(result)
            ended, result, error = answer(None)
        if error is not None:
            raise error
        return result

    with ExitStack() as left:
        threads = ThreadPoolExecutor(n_workers, thread_name_prefix="child", initializer=take_child)
        left.callback(threads.shutdown, cancel_futures=True)
        for _ in range(n_workers):
            ours, process = _started()
            left.callback(_end, process)
            children.put(ours)
        yield lambda work, *arguments: threads.submit(call, work, *arguments)


def _started() -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    with _interrupted_afterwards():
        process.start()
    theirs.close()
    return ours, process


@contextmanager
def _interrupted_afterwards() -> Iterator[None]:
    """Let Ctrl-C wait until a child has started, and reach the parent alone, which ends it.

    The child inherits the mask. For the parent that is not enough: any of its threads may take the signal.
    """
    heard: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if heard:
        signal.raise_signal(signal.SIGINT)


def _end(process: BaseProcess) -> None:
    process.kill()
    process.join()


def _serve(tasks: Connection) -> None:
    """Be a child: do what is asked, until the parent ends it, or has itself been killed."""
    global _to_parent  # a process is the child of one parent
    _to_parent = tasks
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), name="parent", daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            work, arguments = tasks.recv()
            answer: tuple[bool, Any, Exception | None]
            try:
                answer = True, work(*arguments), None
            except Exception as error:
                error.add_note(traceback.format_exc())
                answer = True, None, error
            tasks.send(answer)


def _end_with(sentinel: Any) -> None:
    """A parent that was killed tells nobody: its children would finish their task, and then wait for ever."""
    connection.wait([sentinel])
    os._exit(1)
