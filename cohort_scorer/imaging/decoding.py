"""Films -> images, in child processes that may hang, die or want too much memory without harm to the run.

A child has one thread and decodes one film at a time, in the order they were given; images come back through shared
memory. So the film that stopped a child is known: it is tried once more, alone in a process of its own, and what stops
that one too is refused as decoder_crash, decoder_timeout or too_large. Films whose decoders are known to hang or die
have a process of their own from the start. The kernel keeps the limits: an interval timer, and RLIMIT_DATA.

Knows no network, and no order: films come back as they are done.
"""

import ctypes
import functools
import json
import multiprocessing
import os
import resource
import signal
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from cohort_scorer.errors import MachineError
from cohort_scorer.imaging import codecs, radiograph
from cohort_scorer.imaging.files import path_of
from cohort_scorer.imaging.radiograph import Radiograph
from cohort_scorer.imaging.refusal import Refused

LIMIT_SECONDS: Final = 60.0
"""Of wall time for one film, from its bytes to its image."""

LIMIT_BYTES: Final = 768 * 2**20
"""Of memory that a film may take in a child; with what the child holds before it stays below 1 GiB."""

_FILMS_PER_CHILD: Final = 4  # one is decoded, the others are read ahead by the kernel
_MOST_STILLBORN: Final = 5  # in a row: one may be killed by chance before it is ready
_MOST_KILLED: Final = 3  # no decoder sends SIGKILL: a system short of memory does, and may do so by chance
_ENDED: Final = 0  # exit code of a child whose parent closed the connection
_WANTED_TOO_MUCH: Final = 3  # of one whose film, with what it held of earlier ones, took too much memory

_Row = dict[str, Any]
_Task = tuple[int, _Row]


def radiographs(
    rows: Iterable[_Row], roots: Mapping[str, Path], size: int, workers: int
) -> Generator[tuple[int, Radiograph | Refused]]:
    """Make the image of every film.

    Args:
        rows: Eligible rows of the index; taken one by one, as children are free.
        roots: Folder by the name in the column `root`.
        size: Side of the images in pixels.
        workers: Children that decode side by side.

    Yields:
        Row number and what became of the row: every row once, as it is done. While the caller does other things the
        children go on until each has made four images, the bound on memory.

    Raises:
        MachineError: the children cannot be started.
    """
    with closing(_Crew(roots, size, workers).work(rows)) as outcomes:
        for number, found in outcomes:
            yield number, found if isinstance(found, Refused) else Radiograph(**found)


def fingerprints(rows: Iterable[_Row], roots: Mapping[str, Path], workers: int) -> Iterator[tuple[int, str | Refused]]:
    """As `radiographs`, but hash the displayed values: hex SHA-256 of Rows, Columns and every pixel."""
    for number, found in _Crew(roots, None, workers).work(rows):
        yield number, found if isinstance(found, Refused) else found["pixel_sha256"]


@functools.cache
def _processes() -> ForkServerContext:
    """Children are forked from a server that has no thread, no network and no film; one takes milliseconds to start."""
    context = multiprocessing.get_context("forkserver")
    # Each child imports the console script again: quick where what it imports stands already.
    context.set_forkserver_preload(["cohort_scorer.cli", __name__])
    return context


@dataclass
class _Child:
    """A process, and the films that it has not answered yet with their slots, oldest first."""

    process: BaseProcess
    connection: Connection
    is_alone: bool
    tasks: deque[tuple[_Task, int]] = field(default_factory=deque)
    is_ready: bool = False


class _Crew:
    """The children of one run, and who has which film."""

    def __init__(self, roots: Mapping[str, Path], size: int | None, workers: int) -> None:
        self._roots, self._size, self._workers = roots, size, workers
        n_slots = workers * (_FILMS_PER_CHILD + 1)  # one more for a child that has but one film
        side = size or 1
        self._memory: Any = _processes().RawArray(ctypes.c_uint16, n_slots * side * side)
        self._images = np.ctypeslib.as_array(self._memory).reshape(n_slots, side, side)
        self._free = list(range(n_slots))
        self._children: list[_Child] = []
        self._again: deque[_Task] = deque()
        self._suspects: deque[_Task] = deque()
        self._n_stillborn = 0
        self._n_killed: Counter[int] = Counter()

    def work(self, rows: Iterable[_Row]) -> Generator[tuple[int, Refused | dict[str, Any]]]:
        tasks = enumerate(rows)
        try:
            while self._give(tasks):
                heard = wait([child.connection for child in self._children])
                for child in [child for child in self._children if child.connection in heard]:
                    yield from self._hear(child)
        finally:
            for child in self._children.copy():
                self._dismiss(child)

    def _give(self, tasks: Iterator[_Task]) -> bool:
        """Hand out films for as long as somebody takes them; tells whether any is out."""
        while self._suspects and self._may_start(is_alone=True):
            self._send(self._start(is_alone=True), self._suspects.popleft())
        while (task := self._again.popleft() if self._again else next(tasks, None)) is not None:
            is_alone = task[1]["transfer_syntax"] in codecs.ISOLATED
            child = self._taker(is_alone)
            if child is None:
                self._again.appendleft(task)
                break
            self._send(child, task)
        return any(child.tasks for child in self._children)

    def _taker(self, is_alone: bool) -> _Child | None:
        others = [] if is_alone else [child for child in self._children if not child.is_alone]
        idlest = min(others, key=lambda child: len(child.tasks), default=None)
        if (idlest is None or idlest.tasks) and self._may_start(is_alone):
            return self._start(is_alone)
        return idlest if idlest is not None and len(idlest.tasks) < _FILMS_PER_CHILD else None

    def _may_start(self, is_alone: bool) -> bool:
        return sum(child.is_alone == is_alone for child in self._children) < self._workers

    def _start(self, is_alone: bool) -> _Child:
        ours, theirs = _processes().Pipe()
        arguments = (theirs, self._memory, self._size, self._roots, LIMIT_SECONDS, LIMIT_BYTES)
        process = _processes().Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        self._children.append(_Child(process, ours, is_alone))
        return self._children[-1]

    def _send(self, child: _Child, task: _Task) -> None:
        slot = self._free.pop()
        child.tasks.append((task, slot))
        try:
            child.connection.send((slot, task[1]))
        except OSError:
            return  # it is dead, which will be heard

    def _hear(self, child: _Child) -> Iterator[tuple[int, Refused | dict[str, Any]]]:
        try:
            # Not pickled: what decoded a hostile stream is not trusted with this process.
            answer = json.loads(child.connection.recv_bytes())
        except (EOFError, OSError, ValueError):
            yield from self._bury(child)
            return
        if not child.is_ready:
            child.is_ready, self._n_stillborn = True, 0
            return
        (number, _), slot = child.tasks.popleft()
        image = self._images[slot].copy()
        self._free.append(slot)
        if child.is_alone:
            self._dismiss(child)
        yield number, Refused(*answer["refused"]) if "refused" in answer else {"image": image, **answer}

    def _bury(self, child: _Child) -> Iterator[tuple[int, Refused]]:
        """The oldest film of a dead child is what killed it, or looks as if; the others had not begun."""
        self._dismiss(child)
        tasks = [task for task, _ in child.tasks]
        self._free += [slot for _, slot in child.tasks]
        if not child.is_ready:
            self._n_stillborn += 1
            (self._suspects if child.is_alone else self._again).extend(tasks)
        elif child.is_alone:
            number = tasks[0][0]
            from_outside = child.process.exitcode == -signal.SIGKILL
            self._n_killed[number] += from_outside
            if from_outside and self._n_killed[number] < _MOST_KILLED:
                self._suspects.append(tasks[0])
            else:
                yield number, _stopped(child.process.exitcode)
        else:
            self._suspects.extend(tasks[:1])
            self._again.extend(tasks[1:])
        if self._n_stillborn > _MOST_STILLBORN:
            raise MachineError(
                f"Processes that decode radiographs could not be started: {self._n_stillborn} in a row.",
                f"Expected memory and processes for {self._workers}; the last ended with {child.process.exitcode}.",
                "Run the same command again with fewer --workers, or on a machine with more memory.",
            )

    def _dismiss(self, child: _Child) -> None:
        self._children.remove(child)
        child.connection.close()
        child.process.kill()
        child.process.join()


def _stopped(exit_code: int | None) -> Refused:
    if exit_code == -signal.SIGALRM:
        return Refused("decoder_timeout", f"not decoded within {LIMIT_SECONDS:g} s, alone in a process")
    if exit_code == _WANTED_TOO_MUCH:
        return Refused("too_large", f"needs more than {LIMIT_BYTES // 2**20} MiB, alone in a process")
    how = f"was killed by signal {-exit_code}" if exit_code and exit_code < 0 else f"ended with {exit_code}"
    return Refused("decoder_crash", f"the process that decoded it, and it alone, {how}")


def _serve(
    connection: Connection,
    memory: Any,
    size: int | None,
    roots: Mapping[str, Path],
    limit_seconds: float,
    limit_bytes: int,
) -> None:
    """Be a child: answer films in the order they come, until the parent closes the connection or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and ends its children
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + limit_bytes, held + limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders complain there
    cv2.setNumThreads(1)  # the films are the parallel dimension
    images = np.ctypeslib.as_array(memory).reshape(-1, size or 1, size or 1)
    _tell(connection, {})
    waiting: deque[tuple[int, _Row]] = deque()
    while True:
        while not waiting or connection.poll():
            waiting.append(_heard(connection))
            _read_ahead(waiting[-1][1], roots)
        slot, row = waiting.popleft()
        _tell(connection, _answer(row, roots[row["root"]], images[slot] if size else None, limit_seconds))


def _heard(connection: Connection) -> tuple[int, _Row]:
    try:
        slot, row = connection.recv()
    except (EOFError, OSError):
        os._exit(_ENDED)
    return slot, row


def _tell(connection: Connection, answer: Mapping[str, Any]) -> None:
    try:
        connection.send_bytes(json.dumps(answer).encode())
    except OSError:
        os._exit(_ENDED)


def _read_ahead(row: _Row, roots: Mapping[str, Path]) -> None:
    """Ask the kernel for the film's bytes, while others are decoded; what is wrong with it is found when it is read."""
    try:
        file = os.open(path_of(roots[row["root"]], row["uri"]), os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, Refused):
        return
    os.posix_fadvise(file, row["pixel_data_offset"], row["pixel_data_length"], os.POSIX_FADV_WILLNEED)
    os.close(file)


def _answer(row: _Row, root: Path, slot: Any, limit_seconds: float) -> dict[str, Any]:
    started = time.perf_counter()
    found = _guarded(radiograph.fetch, row, root)
    read_seconds = time.perf_counter() - started
    if not isinstance(found, Refused):
        signal.setitimer(signal.ITIMER_REAL, limit_seconds)
        found = _guarded(_made, row, found, slot)
        signal.setitimer(signal.ITIMER_REAL, 0)
    if isinstance(found, Refused):
        return {"refused": [found.reason, found.detail]}
    return {**found, "read_seconds": read_seconds}


def _made(row: _Row, fetched: Any, slot: Any) -> dict[str, Any]:
    if slot is None:
        return {"pixel_sha256": radiograph.fingerprint(row, fetched)}
    film = radiograph.develop(row, fetched, slot.shape[0])
    slot[:] = film.image
    return {
        "pixel_sha256": film.pixel_sha256,
        "quality": dict(film.quality),
        "decode_seconds": film.decode_seconds,
        "resize_seconds": film.resize_seconds,
    }


def _guarded(work: Any, *arguments: Any) -> Any:
    try:
        return work(*arguments)
    except Refused as refused:
        return refused
    except MemoryError:
        os._exit(_WANTED_TOO_MUCH)
    except Exception as error:
        # The film is untrusted: one that trips something nobody thought of is a film refused, not a run stopped.
        return Refused("decode_failed", f"raised {type(error).__name__}")
