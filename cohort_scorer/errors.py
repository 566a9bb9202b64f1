"""One exception class per exit code. Knows no stage, no table and no output stream."""

from typing import ClassVar


class CohortScorerError(Exception):
    """A fault that the user can mend, told in three lines.

    Args:
        what: What is wrong, counted. Never a patient identifier, a film's path or a row's value.
        expected: What was expected and what was found.
        advice: What to do.
    """

    exit_code: ClassVar[int]

    def __init__(self, what: str, expected: str, advice: str) -> None:
        lines = (what, expected, advice)
        # A name with a line break or a terminal's control characters must not make more than three lines.
        super().__init__("\n".join("".join(c if c.isprintable() else " " for c in line) for line in lines))


class StudyFileError(CohortScorerError):
    """The study file is absent, unreadable or contradicts itself (exit 10)."""

    exit_code = 10


class InputTableError(CohortScorerError):
    """An input table is absent, has wrong columns or rows that its schema refuses (exit 11)."""

    exit_code = 11


class BundleError(CohortScorerError):
    """A model bundle, or scores, cannot be used (exit 12)."""

    exit_code = 12


class TooManyRefusedError(CohortScorerError):
    """More radiographs were refused than the study allows (exit 13)."""

    exit_code = 13


class EmptyCohortError(CohortScorerError):
    """Nobody is left to analyse, or nobody had an event (exit 14)."""

    exit_code = 14


class ConvergenceError(CohortScorerError):
    """A model did not converge (exit 15)."""

    exit_code = 15


class DisclosureError(CohortScorerError):
    """A disclosure rule cannot be kept (exit 16)."""

    exit_code = 16


class MachineError(CohortScorerError):
    """The machine refuses: disk full, permission, memory, study locked by another run (exit 17)."""

    exit_code = 17
