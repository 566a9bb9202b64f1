"""run and demo: every step that the study file has sections for, in order."""

from collections.abc import Callable, Iterator
from pathlib import Path

from cohort_scorer import study as study_file
from cohort_scorer.errors import ConvergenceError, StudyFileError
from cohort_scorer.provenance import Step
from cohort_scorer.stages import Console, Machine
from cohort_scorer.stages.audit import audit
from cohort_scorer.stages.check import check
from cohort_scorer.stages.index import index
from cohort_scorer.stages.link import link
from cohort_scorer.stages.prognosis import prognosis
from cohort_scorer.stages.report import report
from cohort_scorer.stages.score import score
from cohort_scorer.stages.sensitivity import sensitivity
from cohort_scorer.stages.simulate import simulate
from cohort_scorer.stages.train import train
from cohort_scorer.stages.validate import validate
from cohort_scorer.study import Study

DEMO_PATIENTS = 600

Stage = Callable[[Study, Machine, Console], Path]


def steps(study: Study) -> Iterator[tuple[str, Stage]]:
    """The steps that this study file has sections for."""
    has_scores = bool(study.model or study.tables.scores)
    wanted: list[tuple[str, Stage, object]] = [
        ("index", index, study.archive and not study.tables.scores),
        ("link", link, study.cohort),
        ("train", train, study.train and study.cohort and not study.tables.scores),
        ("score", score, study.model and not study.tables.scores),
        ("validate", validate, study.cohort and study.tables.cacs and has_scores),
        ("prognosis", prognosis, study.outcome and study.cohort and has_scores),
        ("sensitivity", sensitivity, study.sensitivity and study.outcome and study.cohort and has_scores),
        ("audit", audit, study.audit and has_scores),
        ("report", report, True),
    ]
    for name, stage, needed in wanted:
        if needed:
            yield name, stage


def run(study: Study, machine: Machine, console: Console) -> Path:
    """Check the study, run the steps in order and give the path of the report.

    Where the archive has no index yet, its films are checked against the tables once it has. A model that did not
    converge has its rows, without numbers, in tables that are whole: the report is made, then the
    fault is told.
    """
    path, late = study.file, None
    planned = [name for name, _ in steps(study)]
    for name in {"link", "validate", "prognosis", "sensitivity", "audit"}.difference(planned):
        Step(study, name).forget_outputs()
    if planned == ["report"]:
        raise StudyFileError(
            f"{study.file.name}: there is nothing to run.",
            f"Expected sections that a step needs; found {', '.join(f'[{name}]' for name in study.sections)}.",
            "Add [archive], [tables], [cohort] and what the study is about; the README has an example.",
        )
    knows_films = _check(study, planned, console)
    for name, stage in steps(study):
        if name == "link" and not knows_films:
            _check(study, planned, console)
        console.say(f"--- {name}")
        try:
            path = stage(study, machine, console)
        except ConvergenceError as fault:
            if name != "prognosis":
                raise
            late = fault
    if late:
        raise late
    return path


def _check(study: Study, planned: list[str], console: Console) -> bool:
    """Stop at the first fault; tell whether the films were looked at too."""
    console.say("--- check")
    found = check(study, planned)
    for line in found.plan[1:]:
        console.say(line)
    for fault in found.faults:
        raise fault
    return found.knows_films or "index" not in planned


def demo(folder: Path, seed: int, machine: Machine, console: Console) -> Path:
    """Simulate a study and run it."""
    console.say("--- simulate")
    return run(study_file.load(simulate(folder, DEMO_PATIENTS, seed, True, console)), machine, console)
