"""One short file per verb: read tables, call the wings, write tables. No science."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import polars as pl


@dataclass(frozen=True)
class Shard:
    """The share of one of several jobs that score an archive side by side: every n-th shard of the index.

    Attributes:
        number: 1 to `count`.
        count: How many jobs there are.
    """

    number: int
    count: int

    @property
    def name(self) -> str:
        """How its lock and its manifest are called."""
        return f"{self.number}-of-{self.count}"

    def share(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The index rows of this job, in their order."""
        turn = pl.col("shard").rank("dense") - 1
        return rows.filter(turn % self.count == self.number - 1)


@dataclass(frozen=True)
class Machine:
    """Where and how fast a step runs; changes no number beyond rounding.

    Attributes:
        device: `auto`, `cpu` or `cuda`.
        batch_size: Images per network call; None chooses for the device.
        workers: Processes that decode, parse headers or train side by side.
        shard: The share of this job where several score side by side.
        folds: The folds whose networks this job trains, where several train side by side; none: everything.
        keep_images: Training and scoring keep the resized films, so that each is decoded once.
    """

    device: str = "auto"
    batch_size: int | None = None
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    shard: Shard | None = None
    folds: tuple[int, ...] = ()
    keep_images: bool = False

    @property
    def share(self) -> str:
        """How the manifest of this job is told from those of the jobs beside it; empty where it is alone."""
        if self.shard:
            return self.shard.name
        return f"folds-{'-'.join(map(str, self.folds))}" if self.folds else ""

    @property
    def locks(self) -> tuple[str, ...]:
        """What this job alone may write, where it has a share."""
        return (self.shard.name,) if self.shard else tuple(f"fold-{fold}" for fold in self.folds)


class Advance(Protocol):
    """Tells how far a long piece of work is."""

    def __call__(self, n: int, note: str = "") -> None:
        """So many items more are done; the note says what the last one gave."""


class Console(Protocol):
    """Where a step tells how far it is. Only the command line prints."""

    def say(self, line: str) -> None:
        """Tell a count or a warning."""

    def progress(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Follow a long piece of work; what is given is called with the number of items done."""


class Silent:
    """A console that tells nothing: for notebooks and tests."""

    def say(self, line: str) -> None:
        """Drop the line."""

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """Follow nothing."""
        yield lambda n, note="": None
