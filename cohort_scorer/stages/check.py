"""check: study file, tables, bundle, identifiers; all faults at once; touches no pixel. Prints the plan."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field

import polars as pl

from cohort_scorer import schemas
from cohort_scorer.cohort import identifiers, problems
from cohort_scorer.errors import CohortScorerError, EmptyCohortError, InputTableError, MachineError, StudyFileError
from cohort_scorer.imaging.files import refuse_nested
from cohort_scorer.prediction import bundle
from cohort_scorer.provenance import Step
from cohort_scorer.reporting.release import publish
from cohort_scorer.stages import inputs
from cohort_scorer.stages.link import declared_columns, name_faults
from cohort_scorer.stages.prognosis import event_rules
from cohort_scorer.study import Study

_TABLES = ("cacs", "clinical", "follow_up", "events", "diagnoses", "scores")
_CONFOUNDERS = ("hypertension", "diabetes", "smoking", "lipids")
_TOLD_OTHERWISE = {"faulty_row_dropped", "patient_not_there"}


@dataclass
class Findings:
    """What check found.

    Attributes:
        plan: Lines for the user: what would be done, match rates, warnings.
        faults: Everything that would stop a step.
        knows_films: The archive has an index, with which the tables were compared.
    """

    plan: list[str] = field(default_factory=list)
    faults: list[CohortScorerError] = field(default_factory=list)
    knows_films: bool = False


def check(study: Study) -> Findings:
    """Look at everything but pixels, and collect every fault instead of stopping at the first.

    Writes data_problems.csv of the tables that can be read.
    """
    found = Findings()
    step = Step(study, "check")
    step.forget_outputs()
    found.plan.append(f"{study.study.title}: {' -> '.join(planned(study))}")
    found.faults += missing_sections(study)
    if study.outcome and not study.tables.follow_up:
        found.faults.append(
            StudyFileError(
                f"{study.file.name}: [outcome] stands without [tables] follow_up.",
                "Expected the table of last contacts, which prognosis needs; found none.",
                'Add follow_up = "tables/follow_up.csv" under [tables].',
            )
        )
    _archive(study, found)
    tables = {}
    for name in _TABLES:
        try:
            elsewhere = name == "scores" and study.tables.scores
            frame = inputs.elsewhere(study, step) if elsewhere else inputs.table(study, step, name)
        except CohortScorerError as fault:
            found.faults.append(fault)
            continue
        if frame is not None:
            tables[name] = frame
            patients = frame["patient_id"].n_unique()
            dropped = step.facts.get("rows_dropped", {}).get(name, 0)
            faulty = f", {dropped:,} faulty rows dropped" if dropped else ""
            found.plan.append(f"{name}: {len(frame):,} rows, {patients:,} patients{faulty}")
    films = _films(study, step, found)
    _match(tables, films, found)
    _names(study, tables, found)
    _outcome(study, tables, found)
    _bundle(study, found)
    _problems(study, step, tables, films, found)
    _warnings(study, found)
    return found


def planned(study: Study) -> list[str]:
    """The steps that this study file has sections for, in order."""
    has_scores = bool(study.model or study.tables.scores)
    wanted = {
        "index": study.archive and not study.tables.scores,
        "link": study.cohort,
        "train": study.train and study.cohort and not study.tables.scores,
        "score": study.model and not study.tables.scores,
        "validate": study.cohort and study.tables.cacs and has_scores,
        "prognosis": study.outcome and study.cohort and has_scores,
        "sensitivity": study.sensitivity and study.outcome and study.cohort and has_scores,
        "audit": study.audit and has_scores,
        "report": True,
    }
    return [name for name, needed in wanted.items() if needed]


def missing_sections(study: Study) -> Iterator[StudyFileError]:
    """Sections that stand without another one that their step cannot do without: the step would silently not run."""
    has_scores = bool(study.model or study.tables.scores)
    needs = [
        ("outcome", "cohort", study.cohort is not None),
        ("train", "cohort", study.cohort is not None),
        ("train", "archive", study.archive is not None),
        ("model", "archive", study.archive is not None or bool(study.tables.scores)),
        ("outcome", "model] or [tables] scores = [...", has_scores),
        ("sensitivity", "outcome", study.outcome is not None),
        ("sensitivity", "tables] cacs = [...", bool(study.tables.cacs) or not _pairs_anew(study)),
        ("audit", "model] or [tables] scores = [...", has_scores),
        ("codes", "tables] diagnoses = [...", bool(study.tables.diagnoses)),
    ]
    for section, needed, stands in needs:
        if getattr(study, section) and not stands:
            yield StudyFileError(
                f"{study.file.name}: [{section}] stands without [{needed}].",
                f"Expected [{needed}], which its step needs; found [{'], ['.join(study.sections)}].",
                f"Add [{needed}] (an empty section takes its defaults), or take [{section}] out.",
            )


def _pairs_anew(study: Study) -> bool:
    """Whether [sensitivity] pairs films with CTs in other ways; without CTs that would change nothing."""
    section = study.sensitivity
    return section is not None and bool(section.maximum_days_between or section.pairing)


def _archive(study: Study, found: Findings) -> None:
    if study.archive is None:
        return
    absent = [name for name, root in study.roots.items() if not root.is_dir()]
    if absent:
        found.faults.append(
            MachineError(
                f"{len(absent)} of {len(study.roots)} archive roots are not folders that can be read.",
                "Expected every folder named in [archive] root.",
                "Correct [archive] root, or mount the folder.",
            )
        )
    try:
        refuse_nested(study.roots)
    except CohortScorerError as fault:
        found.faults.append(fault)
    try:
        if study.archive.listing:
            path = study.folder / study.archive.listing
            listing = schemas.read(
                path, "listing", study.tables.faulty_rows, study.patient_level, study.tables.map.get("listing")
            )
            found.plan.append(f"listing: {len(listing):,} files")
        if study.archive.index:
            found.plan.append(f"index of another study: {len(inputs.index(study)):,} files")
    except CohortScorerError as fault:
        found.faults.append(fault)


def _films(study: Study, step: Step, found: Findings) -> pl.DataFrame | None:
    """The films of the index, where there is one."""
    if study.archive is None or study.tables.scores:
        return None
    try:
        films = inputs.films(study, step)
    except EmptyCohortError:
        return None  # Not indexed yet: the tables are compared with each other.
    except CohortScorerError as fault:
        found.faults.append(fault)
        return None
    found.knows_films = True
    return films


def _match(tables: dict[str, pl.DataFrame], films: pl.DataFrame | None, found: Findings) -> None:
    """Match rates of every table with the archive's index, where it stands, else with the first table."""
    first = next(iter(tables), None)
    if first is None:
        return
    known, label = (tables[first], first) if films is None else (films, "the index")
    for name, frame in tables.items():
        if name == label:
            continue
        rate = identifiers.match(frame["patient_id"], known["patient_id"])
        found.plan.append(
            f"{name}: {rate.n_matched:,} of {rate.n:,} patients occur in {label} "
            f"({rate.n_matched_without_zeros:,} if leading zeros were stripped)"
        )
        if rate.lost_zeros:
            found.faults.append(inputs.lost_zeros(name, label, rate))
        elif not rate.n_matched:
            found.faults.append(
                InputTableError(
                    f"{name}: none of {rate.n:,} patient ids occurs in {label}.",
                    "Expected the same text in every table; found identifiers of another kind.",
                    "Export the table again with the identifiers of the other tables.",
                )
            )


def _problems(
    study: Study, step: Step, tables: dict[str, pl.DataFrame], films: pl.DataFrame | None, found: Findings
) -> None:
    """Write data_problems.csv, and tell its warnings; match rates and dropped rows are told already."""
    if not tables:
        return
    declared = [] if study.cohort is None else declared_columns(study)
    counted = problems.table(tables, films, declared, step.facts.get("rows_dropped", {}))
    told = counted.filter((pl.col("severity") == "warning") & ~pl.col("problem").is_in(list(_TOLD_OTHERWISE)))
    for row in told.iter_rows(named=True):
        where = row["table"] if row["column"] is None else f"{row['table']}.{row['column']}"
        what = row["problem"].replace("_", " ")
        against = f", compared with {row['compared_with']}" if row["compared_with"] else ""
        found.plan.append(f"warning: {where}: {what} in {row['n']:,} of {row['of']:,}{against}. {row['advice']}")
    publish(step, {"data_problems": counted}, ())  # no figure, and a bundle that may be faulty
    step.facts |= {"n_faults": len(found.faults), "severity": dict(counted["severity"].value_counts().iter_rows())}
    step.finish()


def _names(study: Study, tables: dict[str, pl.DataFrame], found: Findings) -> None:
    """Columns and event types that the study file names, where the table that should have them was read."""
    clinical, events = tables.get("clinical"), tables.get("events")
    unread = [name for name in ("clinical", "events") if getattr(study.tables, name) and name not in tables]
    if study.cohort and not unread:
        found.faults += name_faults(study, clinical, events)
    if "clinical" in unread:
        return
    known = {*schemas.columns("cohort"), *schemas.columns("analysis_set"), "age_band"}
    known.update([] if clinical is None else clinical.columns)
    named = [("comparison", "adjust_for", study.comparison.adjust_for if study.outcome else [])]
    named.append(("audit", "strata", study.audit.strata if study.audit else []))
    for section, key, columns in named:
        absent = [column for column in columns if column not in known]
        if absent:
            nearest = difflib.get_close_matches(absent[0], known, n=1)
            found.faults.append(
                StudyFileError(
                    f"{study.file.name}: [{section}] {key} names what is no column: {', '.join(absent)}.",
                    "Expected sex, bmi, site or another column of the clinical table.",
                    f"Did you mean {nearest[0]}?" if nearest else f"Correct [{section}] {key}.",
                )
            )
    if study.train and study.cohort and clinical is not None:
        sites = clinical["site"].drop_nulls().unique().sort().to_list()
        absent = [site for site in study.train.sites if sites and site not in sites]
        if absent:
            found.faults.append(
                StudyFileError(
                    f"{study.file.name}: [train] sites names what does not occur: {', '.join(absent)}.",
                    f"Expected values of clinical.site; found {inputs.spoken(sites)}.",
                    "Correct [train] sites.",
                )
            )


def _outcome(study: Study, tables: dict[str, pl.DataFrame], found: Findings) -> None:
    if study.outcome is None or "events" not in tables:
        return
    try:
        rules = event_rules(study, tables["events"])
        found.plan.append(f"{study.outcome.name}: {', '.join(rules.components)}")
    except CohortScorerError as fault:
        found.faults.append(fault)


def _bundle(study: Study, found: Findings) -> None:
    if study.model is None or study.tables.scores or (study.train and not study.bundle.exists()):
        return
    try:
        model = bundle.load(study.bundle, inputs.categories())
        simulated = ", trained on SIMULATED data" if model.content["simulated"] else ""
        found.plan.append(f"bundle: {len(model.networks)} networks, every sha256 right{simulated}")
    except CohortScorerError as fault:
        found.faults.append(fault)


def _warnings(study: Study, found: Findings) -> None:
    if study.tables.diagnoses and not study.codes:
        found.plan.append("warning: [tables] diagnoses is not used: no [codes] make events of them")
    lacking = [name for name in _CONFOUNDERS if name not in study.comparison.adjust_for]
    if study.outcome and lacking:
        found.plan.append(f"warning: [comparison] adjust_for lacks {', '.join(lacking)}")
    if study.train and study.train.trainable == "head" and not (study.folder / study.train.backbone).is_dir():
        found.plan.append('warning: [train] trainable = "head" on a preset: its features are random, not learnt')
