"""The command line: parse, call one stage, turn errors into exit codes. Alone prints and exits.

Stages are imported when a verb runs, so that --help answers without importing torch.
"""

import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cohort_scorer import errors

if TYPE_CHECKING:
    from cohort_scorer.stages import Console, Machine
    from cohort_scorer.study import Study

INTERRUPTED = 130
_MACHINE_FAULTS = {
    errno.ENOSPC: ("The disk is full.", "Free space, or name another [study] output."),
    errno.EDQUOT: ("The disk quota is used up.", "Free space, or name another [study] output."),
    errno.EACCES: ("A file or folder may not be read or written.", "Ask for permission, or name another folder."),
    errno.EPERM: ("A file or folder may not be changed.", "Ask for permission, or name another folder."),
    errno.EROFS: ("The file system is read-only.", "Name another [study] output."),
    errno.EMFILE: ("Too many files are open.", "Raise `ulimit -n`, or use fewer --workers."),
    errno.EEXIST: ("A file stands where a folder is needed.", "Move it away, or name another [study] output."),
    errno.ENOTDIR: ("A file stands where a folder is needed.", "Move it away, or name another [study] output."),
    errno.ENOTEMPTY: ("A folder that must be empty is not.", "Move what is in it away, or name another folder."),
    errno.EISDIR: ("A folder stands where a file is needed.", "Move it away, or name another [study] output."),
    errno.EIO: ("The disk does not answer.", "Look after the disk or the network share, then run again."),
    errno.ESTALE: ("A network share was lost.", "Mount it again, then run again."),
}

app = typer.Typer(
    help="Score chest X-ray archives for coronary artery calcium categories, and compare their prognostic value with "
    "the true score. STUDY is a folder with a study.toml, or that file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        from cohort_scorer import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Score chest X-ray archives for calcium categories; compare their prognostic value with the true score."""


class Device(StrEnum):
    """Where networks run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


StudyPath = Annotated[Path, typer.Argument(help="A folder with a study.toml, or that file.", show_default="here")]
DeviceOption = Annotated[Device, typer.Option(help="Where networks run.")]
BatchOption = Annotated[int | None, typer.Option(min=1, help="Images per network call.", show_default="by device")]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Threads or processes.", show_default="all cores")]
ShardOption = Annotated[
    str | None,
    typer.Option(
        metavar="I/N", help="Score the i-th of n shares of the archive; `score` without it puts them together."
    ),
]
FoldsOption = Annotated[
    str | None,
    typer.Option(metavar="0,1", help="Train the networks of these folds alone; `train` without it does the rest."),
]
KeepOption = Annotated[
    bool, typer.Option("--keep-images", help="Keep resized films (0.5 MB each at 512 pixels): each is decoded once.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress and no counts on stderr.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the step's manifest instead of a path.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Every byte depends on it alone.")]


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")] = Path("demo"),
    seed: SeedOption = 2025,
    device: DeviceOption = Device.AUTO,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
) -> None:
    """Simulate a study with images, run every step, print the report's path."""
    with _faults_told():
        from cohort_scorer.stages import run as stage

        print(stage.demo(folder, seed, _machine(device, None, workers), _console(quiet)))


@app.command()
def simulate(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    patients: Annotated[int, typer.Option(min=1, help="How many patients.")] = 600,
    seed: SeedOption = 2025,
    images: Annotated[bool, typer.Option("--images/--no-images", help="With a DICOM archive, or tables only.")] = True,
    quiet: QuietOption = False,
) -> None:
    """Write a study of simulated patients with known truth: archive, tables, study.toml, truth.json."""
    with _faults_told():
        from cohort_scorer.stages import simulate as stage

        print(stage.simulate(folder, patients, seed, images, _console(quiet)))


@app.command()
def check(study: StudyPath = Path(), as_json: JsonOption = False) -> None:
    """Look for every fault in study file, tables, identifiers and bundle; print the plan."""
    with _faults_told():
        from cohort_scorer.stages import check as stage

        found = stage.check(_load(study))
        print(
            json.dumps({"plan": found.plan, "faults": list(map(str, found.faults))})
            if as_json
            else "\n".join(found.plan)
        )
        for fault in found.faults:
            print(f"\n{fault}", file=sys.stderr)
        if found.faults:
            raise typer.Exit(found.faults[0].exit_code)


@app.command()
def index(
    study: StudyPath = Path(), workers: WorkersOption = None, quiet: QuietOption = False, as_json: JsonOption = False
) -> None:
    """Read the headers of the archive; files that did not change are not opened again."""
    _run("index", study, _machine(workers=workers), quiet, as_json)


@app.command()
def link(study: StudyPath = Path(), quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """Link radiographs, true scores and clinical facts into a cohort; count every exclusion."""
    _run("link", study, _machine(), quiet, as_json)


@app.command()
def train(
    study: StudyPath = Path(),
    device: DeviceOption = Device.AUTO,
    workers: WorkersOption = None,
    folds: FoldsOption = None,
    keep_images: KeepOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the three threshold models with cross-validation; write the bundle. Resumable."""
    _run("train", study, _machine(device, None, workers, None, folds, keep_images), quiet, as_json)


@app.command()
def score(
    study: StudyPath = Path(),
    device: DeviceOption = Device.AUTO,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    shard: ShardOption = None,
    keep_images: KeepOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score every eligible radiograph with the bundle. Resumable."""
    _run("score", study, _machine(device, batch_size, workers, shard, None, keep_images), quiet, as_json)


@app.command()
def recalibrate(
    output: Annotated[
        Path, typer.Option("--output", help="A new folder for the recalibrated bundle; the old one stays.")
    ],
    study: StudyPath = Path(),
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fit the bundle's probabilities and cut points to the external patients whose true score is known."""
    _run("recalibrate", study, _machine(), quiet, as_json, output=output)


@app.command()
def validate(study: StudyPath = Path(), quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """Hold the scores against the true categories: AUC, operating points, calibration, agreement."""
    _run("validate", study, _machine(), quiet, as_json)


@app.command()
def prognosis(study: StudyPath = Path(), quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """Kaplan-Meier, log-rank and Cox by predicted and by true category, side by side."""
    _run("prognosis", study, _machine(), quiet, as_json)


@app.command()
def sensitivity(study: StudyPath = Path(), quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """Fit the main Cox models again under the windows, pairings and landmarks of [sensitivity]."""
    _run("sensitivity", study, _machine(), quiet, as_json)


@app.command()
def audit(study: StudyPath = Path(), quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """Coverage, positivity and adjusted prevalence by stratum."""
    _run("audit", study, _machine(), quiet, as_json)


@app.command()
def report(study: StudyPath = Path(), quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """Put everything found into one self-contained page."""
    _run("report", study, _machine(), quiet, as_json)


@app.command()
def run(
    study: StudyPath = Path(),
    device: DeviceOption = Device.AUTO,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    keep_images: KeepOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run every step that the study file has sections for, in order."""
    _run("run", study, _machine(device, batch_size, workers, None, None, keep_images), quiet, as_json)


@app.command()
def schema(
    name: Annotated[str | None, typer.Argument(help="A table.", show_default="list all")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print a table's columns, units and rules."""
    with _faults_told():
        from cohort_scorer import schemas

        if name is None:
            for known in schemas.names():
                print(f"{known:24}{schemas.load(known)['title']}")
            return
        if name not in schemas.names():
            raise typer.BadParameter(f"no table {name}; `cohort-scorer schema` lists them", param_hint="NAME")
        if as_json:
            print(json.dumps(schemas.load(name), indent=2, ensure_ascii=False))
            return
        declared = schemas.load(name)
        print(f"{declared['title']}\n{declared['description']}\n")
        for field in declared["fields"]:
            rules = field.get("constraints", {})
            unit = f" [{field['unit']}]" if "unit" in field else ""
            said = [word if value is True else f"{word} {value}" for word, value in rules.items() if value is not False]
            print(
                f"{field['name']:30}{field['type']:9}{unit} {field['description']}"
                + (f" ({'; '.join(said)})" if said else "")
            )


def main() -> None:
    """The console script."""
    app()


def _load(path: Path) -> "Study":
    from cohort_scorer import study

    return study.load(path)


def _machine(
    device: Device = Device.AUTO,
    batch_size: int | None = None,
    workers: int | None = None,
    share: str | None = None,
    folds: str | None = None,
    keep_images: bool = False,
) -> "Machine":
    from cohort_scorer.stages import Machine, Shard

    shard = None
    if share is not None:
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", share)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise typer.BadParameter(f"{share}: expected i/n with 1 <= i <= n, as 3/8", param_hint="--shard")
        shard = Shard(int(found[1]), int(found[2]))
    if folds is not None and not re.fullmatch(r"\d{1,3}(,\d{1,3})*", folds):
        raise typer.BadParameter(f"{folds}: expected numbers of folds, as 0,1", param_hint="--folds")
    chosen = tuple(sorted(set(map(int, folds.split(","))))) if folds else ()
    return Machine(device.value, batch_size, workers or os.cpu_count() or 1, shard, chosen, keep_images)


def _run(verb: str, path: Path, machine: "Machine", quiet: bool, as_json: bool, **more: Path) -> None:
    with _faults_told():
        from importlib import import_module

        from cohort_scorer import storage

        study = _load(path)
        stage: Callable[..., Path]
        stage = getattr(import_module(f"cohort_scorer.stages.{verb}"), verb)
        with storage.lock(study.output, machine.locks):
            result = stage(study, machine, _console(quiet), **more)
        if as_json:
            inside = study.unprotected / "manifests" / f"{verb}{machine.share and '-'}{machine.share}.json"
            result = study.release_folder / "manifest.json" if verb in ("run", "report") else inside
            print(result.read_text(encoding="utf-8"), end="")
        else:
            print(result)


@contextmanager
def _faults_told() -> Iterator[None]:
    """Tell a fault in three lines and end with its exit code; a bug keeps its traceback and ends with 1."""
    try:
        yield
    except errors.CohortScorerError as fault:
        _end(str(fault), fault.exit_code)
    except KeyboardInterrupt:
        _end("Interrupted.\nWhat was finished stands.\nRun the same command again to go on.", INTERRUPTED)
    except MemoryError:
        advice = "Use fewer --workers, a smaller --batch-size, or a machine with more memory."
        _end(
            f"The memory is used up.\nExpected enough for one part of the study.\n{advice}",
            errors.MachineError.exit_code,
        )
    except Exception as fault:
        number = _system_fault(fault)
        if number not in _MACHINE_FAULTS:
            raise
        what, advice = _MACHINE_FAULTS[number]
        _end(
            f"{what}\nExpected to read and write the study's files; the system says: {os.strerror(number)}.\n{advice}",
            errors.MachineError.exit_code,
        )


def _system_fault(fault: Exception) -> int | None:
    """The number of the operating system's fault; polars and safetensors tell it in their message alone."""
    if isinstance(fault, OSError) and fault.errno is not None:
        return fault.errno
    told = re.search(r"\(os error (\d+)\)", str(fault))
    return int(told[1]) if told else None


def _end(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    raise typer.Exit(code)


def _console(quiet: bool) -> "Console":
    from cohort_scorer.console import Stderr
    from cohort_scorer.stages import Silent

    return Silent() if quiet else Stderr()
