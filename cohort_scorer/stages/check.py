"""check: study file, tables, bundle, identifiers; all faults at once; touches no pixel. Prints the plan."""

import difflib
from dataclasses import dataclass, field

import polars as pl

from cohort_scorer import schemas
from cohort_scorer.cohort import identifiers
from cohort_scorer.errors import CohortScorerError, EmptyCohortError, InputTableError, MachineError, StudyFileError
from cohort_scorer.imaging.files import refuse_nested
from cohort_scorer.prediction import bundle
from cohort_scorer.provenance import Step
from cohort_scorer.stages import inputs
from cohort_scorer.stages.link import name_faults
from cohort_scorer.stages.prognosis import event_rules
from cohort_scorer.stages.run import missing_sections, steps
from cohort_scorer.study import Study

_TABLES = ("cacs", "clinical", "follow_up", "events", "scores")
_CONFOUNDERS = ("hypertension", "diabetes", "smoking", "lipids")
_NOT_USED_YET = {("comparison", "bootstrap_replicates"), ("comparison", "noninferiority_margin_c")}


@dataclass
class Findings:
    """What check found.

    Attributes:
        plan: Lines for the user: what would be done, match rates, warnings.
        faults: Everything that would stop a step.
    """

    plan: list[str] = field(default_factory=list)
    faults: list[CohortScorerError] = field(default_factory=list)


def check(study: Study) -> Findings:
    """Look at everything but pixels, and collect every fault instead of stopping at the first."""
    found = Findings()
    step = Step(study, "check")
    found.plan.append(f"{study.study.title}: " + " -> ".join(name for name, _ in steps(study)))
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
    _match(study, tables, found)
    _names(study, tables, found)
    _outcome(study, tables, found)
    _bundle(study, found)
    _warnings(study, tables, found)
    return found


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


def _match(study: Study, tables: dict[str, pl.DataFrame], found: Findings) -> None:
    """Match rates of every table with the archive's index, where it stands, else with the first table."""
    known, label = _known_patients(study, tables, found)
    if known is None:
        return
    for name, frame in tables.items():
        if name == label:
            continue
        rate = identifiers.match(frame["patient_id"], known)
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


def _known_patients(study: Study, tables: dict[str, pl.DataFrame], found: Findings) -> tuple[pl.Series | None, str]:
    if study.archive is not None and not study.tables.scores:
        try:
            return inputs.index(study)["patient_id"], "the index"
        except EmptyCohortError:
            pass  # Not indexed yet: the tables are compared with each other.
        except CohortScorerError as fault:
            found.faults.append(fault)
    first = next(iter(tables), None)
    return (tables[first]["patient_id"], first) if first else (None, "")


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


def _warnings(study: Study, tables: dict[str, pl.DataFrame], found: Findings) -> None:
    unused = [
        f"[{section}] {key}"
        for section, key, _, origin in study.choices()
        if origin == "declared" and (section, key) in _NOT_USED_YET
    ]
    if unused:
        found.plan.append(f"warning: this version does not use {', '.join(unused)} yet")
    lacking = [name for name in _CONFOUNDERS if name not in study.comparison.adjust_for]
    if study.outcome and lacking:
        found.plan.append(f"warning: [comparison] adjust_for lacks {', '.join(lacking)}")
    if study.train and study.train.trainable == "head" and not (study.folder / study.train.backbone).is_dir():
        found.plan.append('warning: [train] trainable = "head" on a preset: its features are random, not learnt')
    clinical = tables.get("clinical")
    if clinical is not None:
        for name, low, high in (("height_cm", 100, 230), ("weight_kg", 25, 300)):
            odd = clinical.filter(~pl.col(name).is_between(low, high)).height
            if odd:
                found.plan.append(f"warning: clinical: {name} outside {low} to {high} in {odd:,} rows (another unit?)")
        bmi = pl.coalesce("bmi", pl.col("weight_kg") + pl.col("height_cm"))
        for name, known in (("sex", pl.col("sex")), ("bmi", bmi)):
            if missing := clinical.filter(known.is_null()).height:
                found.plan.append(f"clinical: {name} is missing in {missing:,} of {len(clinical):,} rows")
        flagged = clinical.filter(~pl.col("bmi").is_between(12, 70)).height
        if flagged:
            found.plan.append(f"warning: clinical: bmi outside 12 to 70 kg/m2 in {flagged:,} rows")
