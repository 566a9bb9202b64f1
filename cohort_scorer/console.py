"""How a step tells how far it is, on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cohort_scorer.stages import Advance


class Stderr:
    """Lines and progress on stderr: a bar on a terminal, elsewhere a line every 30 seconds with what is left."""

    def say(self, line: str) -> None:
        """Write a line."""
        print(line, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """Follow a long piece of work."""
        if sys.stderr.isatty():
            with _bar() as bar:
                task = bar.add_task(description, total=total)

                def tell(n: int, note: str = "") -> None:
                    bar.update(task, advance=n, description=f"{description}, {note}" if note else description)

                yield tell
            return
        started = last = time.monotonic()
        done = 0

        def advance(n: int, note: str = "") -> None:
            nonlocal done, last
            done += n
            now = time.monotonic()
            if now - last >= 30 and done:
                last = now
                left = (now - started) * (total - done) / done
                self.say(
                    f"{description}: {done:,} of {total:,}, about {left / 60:.0f} min left" + (note and f"; {note}")
                )

        yield advance
        self.say(f"{description}: {done:,} of {total:,} in {time.monotonic() - started:.0f} s")


def _bar() -> Any:
    from rich.console import Console as Terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Terminal(stderr=True))
