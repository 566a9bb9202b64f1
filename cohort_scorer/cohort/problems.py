"""What is odd about the study's tables, counted before anything is computed from them. Excludes and changes nothing.

Each check has its row in data_problems.csv, whether it found anything or not. Rows that no table may hold (a date that
is none, a score below 0) never come here: reading refuses them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date

import polars as pl

from cohort_scorer.cohort import identifiers
from cohort_scorer.cohort.eligibility import age_years, bmi_of_height_and_weight

_DATES = {
    "cacs": "ct_date",
    "events": "event_date",
    "follow_up": "last_contact_date",
    "films": "study_date",
    "scores": "study_date",
}
_KEYS = {"events": ("patient_id", "event_type", "event_date"), "diagnoses": ("patient_id", "code", "diagnosis_date")}
_USUAL = {"bmi": (12, 70), "height_cm": (100, 230), "weight_kg": (25, 300), "age_years": (18, 105)}
_PLACEHOLDERS = (date(1900, 1, 1), date(1901, 1, 1), date(1960, 1, 1), date(1970, 1, 1))
"""Day 0 of Excel, of forms that must not stay empty, of SAS and Stata, and of Unix."""
_KG_PER_POUND = 0.45359237
_FEWEST_SCORES = 20
_YEARS_APART = 2

_ADVICE: dict[str, tuple[float, str]] = {
    "faulty_row_dropped": (0, "They stand in patient_level/refused_*.parquet, each with its rule."),
    "patient_not_there": (0.05, "Patients of this table that the other does not know; many: identifiers of two kinds."),
    "patient_there_without_zeros": (0, "Leading zeros differ: export both tables with the identifiers as text."),
    "patient_there_without_case": (0, "Capitals differ: write the identifiers alike in both tables."),
    "missing": (0.2, "Patients without the value leave every comparison that needs it."),
    "outside_usual_range": (0, "Another unit, or a misprint: compare with the source."),
    "height_in_metres": (0, "height_cm is in centimetres: declare the unit in [tables.map]."),
    "height_in_inches": (0, "height_cm is in centimetres: declare the unit in [tables.map]."),
    "weight_in_pounds": (0.02, "weight_kg is in kilograms: declare the unit in [tables.map]."),
    "height_below_weight": (0, "The two columns may be swapped."),
    "bmi_contradicts_height_and_weight": (0, "More than 10 % apart: of another day, or another unit. bmi is used."),
    "score_like_a_category": (0, "All scores are whole numbers up to 4: Agatston units are needed, not categories."),
    "duplicated_row": (0, "Equal rows after the first; they count once."),
    "placeholder_date": (0, "Day 0 of a calendar (1900, 1901, 1960, 1970): leave unknown dates empty."),
    "before_birth": (0, "Identifiers of two people, or swapped columns: compare with the source."),
    "after_death": (0, "Identifiers of two people, or a wrong date of death: compare with the source."),
    "after_last_contact": (0, "Nobody is followed beyond the last contact; later events are not used."),
    "several_days_of_death": (0, "One patient dies once: correct the events."),
    "films_of_several_sites": (1, "The site of the clinical table counts, or else that of the film taken."),
    "sex_contradicts_header": (0.01, "Identifiers of two people, or codes mixed up: compare with the source."),
    "age_contradicts_header": (
        0.01,
        "More than 2 years apart, at the film: identifiers of two people, or shifted dates.",
    ),
}
"""By problem: the share of rows above which it is a warning and not a note, and what to make of it."""

_Row = tuple[str, str | None, str | None, str, int, int]


def table(
    tables: Mapping[str, pl.DataFrame],
    films: pl.DataFrame | None,
    declared: Sequence[str],
    n_dropped: Mapping[str, int],
) -> pl.DataFrame:
    """Count the data problems of a study.

    Args:
        tables: Input tables by name, as read.
        films: patient_id, study_date, site, age_years, sex, is_eligible of the archive's films, or None without an
            index. Only eligible ones are looked at.
        declared: Clinical columns that the study file names.
        n_dropped: Faulty rows dropped by table.

    Returns:
        table, column, compared_with, problem, n, of, percent, severity (`none` where n is 0, `note`, `warning`),
        advice; a row per check.
    """
    known = dict(tables)
    if films is not None:
        known["films"] = films.filter("is_eligible")
    rows: list[_Row] = [
        (name, None, None, "faulty_row_dropped", n, n + len(tables[name])) for name, n in n_dropped.items()
    ]
    for checks in (_matches(known), _missing(known, declared), _clinical(known), _scores(known), _rows(known)):
        rows += checks
    for checks in (_birth(known), _death(known), _last_contact(known), _headers(known)):
        rows += checks
    schema = dict.fromkeys(["table", "column", "compared_with", "problem"], pl.String()) | dict.fromkeys(
        ["n", "of"], pl.Int64()
    )
    found = pl.DataFrame(rows, schema=schema, orient="row").filter(pl.col("of") > 0)
    limits = {problem: float(share) for problem, (share, _) in _ADVICE.items()}
    share = pl.col("n") / pl.col("of")
    return found.with_columns(
        (100 * share).alias("percent"),
        pl.when(pl.col("n") == 0)
        .then(pl.lit("none"))
        .when(share > pl.col("problem").replace_strict(limits, return_dtype=pl.Float64))
        .then(pl.lit("warning"))
        .otherwise(pl.lit("note"))
        .alias("severity"),
        pl.col("problem").replace_strict({key: advice for key, (_, advice) in _ADVICE.items()}).alias("advice"),
    )


def _matches(known: Mapping[str, pl.DataFrame]) -> Iterator[_Row]:
    """Every table against every other: a film without a CT and a CT without a film are different questions."""
    ids = {name: frame["patient_id"].drop_nulls().unique() for name, frame in known.items()}
    lower = {name: patients.str.to_lowercase() for name, patients in ids.items()}
    for name in known:
        for other in known:
            # Most patients have no event and no diagnosis.
            if name == other or other in ("events", "diagnoses"):
                continue
            found = identifiers.match(ids[name], ids[other])
            n_without_case = int(lower[name].is_in(lower[other].implode()).sum())
            counts = {
                "patient_not_there": found.n - found.n_matched,
                "patient_there_without_zeros": found.n_gained,
                "patient_there_without_case": n_without_case - found.n_matched,
            }
            for problem, n in counts.items():
                yield name, "patient_id", other, problem, n, found.n


def _missing(known: Mapping[str, pl.DataFrame], declared: Sequence[str]) -> Iterator[_Row]:
    if "films" in known:
        for column in ("patient_id", "study_date"):
            yield "films", column, None, "missing", known["films"][column].null_count(), len(known["films"])
    if "clinical" not in known:
        return
    clinical = known["clinical"].with_columns(
        pl.coalesce("bmi", bmi_of_height_and_weight()).alias("bmi"),
        pl.coalesce(pl.col("birth_date").dt.year().cast(pl.Float64), "age_years").alias("age_years"),
    )
    described = dict.fromkeys(["sex", "age_years", "bmi", "site", *declared])
    for column in (name for name in described if name in clinical.columns):
        yield "clinical", column, None, "missing", clinical[column].null_count(), len(clinical)


def _clinical(known: Mapping[str, pl.DataFrame]) -> Iterator[_Row]:
    """Ranges, units and swapped columns of the body."""
    if "clinical" not in known:
        return
    clinical = known["clinical"]
    for column, (low, high) in _USUAL.items():
        outside = clinical.filter(~pl.col(column).is_between(low, high)).height
        yield "clinical", column, None, "outside_usual_range", outside, clinical[column].count()
    height, weight = pl.col("height_cm"), pl.col("weight_kg")
    both = clinical.filter(height.is_not_null() & weight.is_not_null())
    of_both = bmi_of_height_and_weight()
    in_kilograms = of_both * _KG_PER_POUND
    checks: list[tuple[str, str, pl.DataFrame, pl.Expr]] = [
        ("height_cm", "height_in_metres", clinical.drop_nulls("height_cm"), height.is_between(1, 2.3)),
        ("height_cm", "height_in_inches", clinical.drop_nulls("height_cm"), height.is_between(48, 84)),
        ("weight_kg", "weight_in_pounds", both, (of_both > 50) & in_kilograms.is_between(18, 45)),
        ("height_cm", "height_below_weight", both, height < weight),
        (
            "bmi",
            "bmi_contradicts_height_and_weight",
            both.drop_nulls("bmi"),
            ((pl.col("bmi") - of_both).abs() > 0.1 * pl.col("bmi")) & height.is_between(100, 230),
        ),
    ]
    for column, problem, among, is_odd in checks:
        yield "clinical", column, None, problem, among.filter(is_odd).height, len(among)


def _scores(known: Mapping[str, pl.DataFrame]) -> Iterator[_Row]:
    if "cacs" in known:
        cacs = known["cacs"]["cacs"]
        like = len(cacs) >= _FEWEST_SCORES and bool(((cacs <= 4) & (cacs == cacs.round())).all())
        yield "cacs", "cacs", None, "score_like_a_category", len(cacs) if like else 0, len(cacs)


def _rows(known: Mapping[str, pl.DataFrame]) -> Iterator[_Row]:
    """Equal rows, and dates that stand for none."""
    for name, key in _KEYS.items():
        if name in known:
            yield (
                name,
                None,
                None,
                "duplicated_row",
                len(known[name]) - known[name].select(key).n_unique(),
                len(known[name]),
            )
    for name, column in _DATES.items():
        if name in known:
            dates = known[name][column]
            yield name, column, None, "placeholder_date", int(dates.is_in(_PLACEHOLDERS).sum()), dates.count()
    if "clinical" in known:
        dates = known["clinical"]["birth_date"]
        # Of people of 2020, few are born in 1900 or 1901; 1960 and 1970 are birthdays like others.
        yield (
            "clinical",
            "birth_date",
            None,
            "placeholder_date",
            int(dates.is_in(_PLACEHOLDERS[:2]).sum()),
            dates.count(),
        )


def _birth(known: Mapping[str, pl.DataFrame]) -> Iterator[_Row]:
    if "clinical" not in known:
        return
    born = known["clinical"].select("patient_id", "birth_date").drop_nulls()
    yield from _against(known, _DATES, born, "clinical", "before_birth", lambda day: day < pl.col("birth_date"))


def _death(known: Mapping[str, pl.DataFrame]) -> Iterator[_Row]:
    if "events" not in known:
        return
    deaths = known["events"].filter(pl.col("event_type").str.to_lowercase().str.contains("death", literal=True))
    died = deaths.group_by("patient_id").agg(
        pl.col("event_date").min().alias("died"), pl.col("event_date").n_unique().alias("days")
    )
    yield "events", "event_date", None, "several_days_of_death", died.filter(pl.col("days") > 1).height, len(died)
    dates = {name: column for name, column in _DATES.items() if name != "follow_up"}
    yield from _against(known, dates, died, "events", "after_death", lambda day: day > pl.col("died"))


def _last_contact(known: Mapping[str, pl.DataFrame]) -> Iterator[_Row]:
    if "follow_up" not in known:
        return
    last = known["follow_up"].select("patient_id", pl.col("last_contact_date").alias("last"))
    dates = {name: column for name, column in _DATES.items() if name != "follow_up"}
    yield from _against(known, dates, last, "follow_up", "after_last_contact", lambda day: day > pl.col("last"))


def _against(
    known: Mapping[str, pl.DataFrame],
    dates: Mapping[str, str],
    facts: pl.DataFrame,
    source: str,
    problem: str,
    is_odd: Callable[[pl.Expr], pl.Expr],
) -> Iterator[_Row]:
    """Hold every dated row against what another table says of its patient."""
    for name, column in dates.items():
        if name in known:
            dated = known[name].select("patient_id", column).drop_nulls().join(facts, on="patient_id")
            yield name, column, source, problem, dated.filter(is_odd(pl.col(column))).height, len(dated)


def _headers(known: Mapping[str, pl.DataFrame]) -> Iterator[_Row]:
    """What the films' headers say of the patients."""
    if "films" not in known:
        return
    films = known["films"].drop_nulls("patient_id")
    sites = films.group_by("patient_id").agg(pl.col("site").drop_nulls().n_unique())
    yield "films", "site", None, "films_of_several_sites", sites.filter(pl.col("site") > 1).height, len(sites)
    if "clinical" not in known:
        return
    told = known["clinical"].select("patient_id", "birth_date", "sex", "age_years")
    both = films.select("patient_id", "study_date", "sex", "age_years").join(told, on="patient_id", suffix="_told")
    sexes = both.drop_nulls(["sex", "sex_told"])
    odd = sexes.filter(pl.col("sex") != pl.col("sex_told")).height
    yield "clinical", "sex", "films", "sex_contradicts_header", odd, len(sexes)
    ages = both.with_columns(
        pl.coalesce(age_years("birth_date", "study_date"), "age_years_told").alias("age_told")
    ).drop_nulls(["age_years", "age_told"])
    odd = ages.filter((pl.col("age_years") - pl.col("age_told")).abs() > _YEARS_APART).height
    yield "clinical", "age_years", "films", "age_contradicts_header", odd, len(ages)
