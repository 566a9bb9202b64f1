"""Many files -> the facts of their headers, in the order of the files, in processes where there are enough of them.

Judges no file and holds no table: what a child process imports is this module, and the fewer it needs the sooner it
begins.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from typing import Any, Final

from cohort_scorer import workers
from cohort_scorer.errors import MachineError
from cohort_scorer.imaging import header, pictures
from cohort_scorer.imaging.refusal import Refused

Outcome = tuple[dict[str, Any] | None, str, str]
"""The facts of a header, or None with the reason and the detail of a refusal."""

_FILES_PER_TASK: Final = 100
_FILES_WORTH_PROCESSES: Final = 1_000
"""Children take 0.5 s to begin, as long as 600 headers; with 2 cores they are worth it from some 1,200 on."""


def read_all(paths: Iterator[str], n_files: int, listed: bool, n_workers: int) -> Generator[Outcome]:
    """Read headers.

    Args:
        paths: Files, `n_files` of them; taken only a little ahead of what is asked for.
        n_files: How many there are.
        listed: A listing names them: they may be PNG or JPEG.
        n_workers: Processes, used where there are more than 1,000 files.

    Yields:
        One outcome per file, in order.

    Raises:
        MachineError: a process was killed from outside.
    """
    if n_workers == 1 or n_files <= _FILES_WORTH_PROCESSES:
        for path in paths:
            yield _read_one(listed, path)
        return
    tasks = iter(lambda: list(islice(paths, _FILES_PER_TASK)), [])
    killed = MachineError(
        "A process that read headers was killed; the parts of the index that were finished stand.",
        f"Expected memory for {n_workers:,} processes side by side; found too little, perhaps.",
        "Run the same command again with fewer --workers.",
    )
    with workers.pool(n_workers, killed) as submit:
        ahead: deque[Future[list[Outcome]]] = deque()
        for task in tasks:
            ahead.append(submit(_read_some, listed, task))
            if len(ahead) > 4 * n_workers:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def _read_some(listed: bool, paths: Sequence[str]) -> list[Outcome]:
    return [_read_one(listed, path) for path in paths]


def _read_one(listed: bool, path: str) -> Outcome:
    file = Path(path)
    try:
        try:
            return header.read(file), "", ""
        except Refused as refused:
            if not (listed and refused.reason == "not_dicom"):
                raise
            return pictures.read_header(file), "", ""
    except Refused as refused:
        return None, refused.reason, refused.detail
