"""run and demo: every step that the study file has sections for, in order."""

from collections.abc import Callable, Iterator
from pathlib import Path

from cohort_scorer import study as study_file
from cohort_scorer.errors import ConvergenceError, StudyFileError
from cohort_scorer.provenance import Step
from cohort_scorer.stages import Console, Machine
from cohort_scorer.stages.audit import audit
from cohort_scorer.stages.check import check, missing_sections, planned
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
    stages: dict[str, Stage] = {
        "index": index,
        "link": link,
        "train": train,
        "score": score,
        "validate": validate,
        "prognosis": prognosis,
        "sensitivity": sensitivity,
        "audit": audit,
        "report": report,
    }
    for name in planned(study):
        yield name, stages[name]


def run(study: Study, machine: Machine, console: Console) -> Path:
    """Check the study, run the steps in order and give the path of the report.

    Where the archive has no index yet, its films are checked against the tables once it has. A model that did not
    converge has its rows, without numbers, in tables that are whole: the report is made, then the fault is told.
    """
    path, late = study.file, None
    for fault in missing_sections(study):
        raise fault
    plan = planned(study)
    for name in {"link", "validate", "prognosis", "sensitivity", "audit"}.difference(plan):
        Step(study, name).forget_outputs()
    if plan == ["report"]:
        raise StudyFileError(
            f"{study.file.name}: there is nothing to run.",
            f"Expected sections that a step needs; found {', '.join(f'[{name}]' for name in study.sections)}.",
            "Add [archive], [tables], [cohort] and what the study is about; the README has an example.",
        )
    knows_films = _check(study, console) or "index" not in plan
    for name, stage in steps(study):
        if name == "link" and not knows_films:
            _check(study, console)
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


def _check(study: Study, console: Console) -> bool:
    """Stop at the first fault; tell whether the films were looked at too."""
    console.say("--- check")
    found = check(study)
    for line in found.plan[1:]:
        console.say(line)
    if len(found.faults) > 1:
        console.say(f"{len(found.faults)} faults; `cohort-scorer check` tells all of them")
    for fault in found.faults:
        raise fault
    return found.knows_films


def demo(folder: Path, seed: int, machine: Machine, console: Console) -> Path:
    """Simulate a study and run it."""
    console.say("--- simulate")
    return run(study_file.load(simulate(folder, DEMO_PATIENTS, seed, True, console)), machine, console)
