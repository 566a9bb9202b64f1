"""Small studies, the command line called on them, and what a told fault looks like."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from typer.testing import CliRunner

from cohort_scorer.cli import app

COMMAND = [sys.executable, "-c", "from cohort_scorer.cli import main; main()"]
NOBODY = 65534


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    code: int
    stdout: str
    stderr: str


def cli(*words: str | Path) -> Answer:
    """Call the command line in this process; a bug is raised here with its traceback."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)


def shell(*words: str) -> Answer:
    """Call the command line in a process of its own."""
    return _called([*COMMAND, *words])


def shell_as_nobody(*words: str) -> Answer:
    """Call the command line in a process that gives up root's rights once its modules are loaded."""
    code = (
        "import os, cohort_scorer.stages.link\nfrom cohort_scorer.cli import main\n"
        f"os.setgroups([])\nos.setgid({NOBODY})\nos.setuid({NOBODY})\nmain()"
    )
    return _called([sys.executable, "-c", code, *words])


def _called(command: list[str]) -> Answer:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return Answer(done.returncode, done.stdout, done.stderr)


def members(group: int) -> list[int]:
    """Processes of a group that are alive."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, own_group, *_ = path.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(own_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def wait_for_the_end(group: int) -> None:
    """Processes whose parent was killed end by themselves."""
    deadline = time.monotonic() + 10
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert members(group) == []


def copy(source: Path, target: Path, outputs: bool = False) -> Path:
    """A copy with the same file times, so that an index made of the source knows the copy's films."""
    ignored = None if outputs else shutil.ignore_patterns("outputs")
    return Path(shutil.copytree(source, target, ignore=ignored))


def edit(file: Path, change: Callable[[str], str]) -> None:
    before = file.read_text(encoding="utf-8")
    after = change(before)
    assert after != before, f"nothing in {file.name} to change"
    file.write_text(after, encoding="utf-8")


def substitute(file: Path, pattern: str, replacement: str, count: int = 0) -> None:
    edit(file, lambda text: re.sub(pattern, replacement, text, count=count, flags=re.MULTILINE))


def patient_ids(folder: Path) -> set[str]:
    tables = [pl.read_csv(path, infer_schema=False) for path in (folder / "tables").glob("*.csv")]
    return {name for table in tables if "patient_id" in table.columns for name in table["patient_id"].drop_nulls()}


def told(answer: Answer, code: int, *facts: str, private: set[str] | None = None) -> str:
    """The fault that a command told: its exit code, three lines after the progress, no traceback, nobody's data."""
    assert answer.code == code, answer
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr
    lines = answer.stderr.strip().splitlines()
    before, fault = lines[:-3], lines[-3:]
    assert len(fault) == 3
    assert all(fault), fault
    progress = re.compile(
        r"--- \w+$|(excluded|refused|not eligible|dropped|cohort|index|score|train|warning|prognosis|audit|report): "
        r"|AUC |[A-Z]\w+ [\w() ]+: [\d,]+ of [\d,]+"
    )
    assert all(progress.match(line) for line in before), before
    message = "\n".join(fault)
    for fact in facts:
        assert fact in message, message
    for secret in private or ():
        assert secret not in answer.stderr
    assert ".dcm" not in answer.stderr
    return message
