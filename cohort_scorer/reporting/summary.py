"""The first screen of the page: what was done, in two sentences, and the key results. Only reads published tables."""

from collections.abc import Mapping

import polars as pl

from cohort_scorer import schemas
from cohort_scorer.reporting import canvas, wording
from cohort_scorer.reporting.tables import Printed, estimate, hazard_ratio

HIGHEST = schemas.vocabulary("kaplan_meier", "category")[-1]
_PREDICTED = ("cxr", "integrated", "clinical")


def sentences(tables: Mapping[str, pl.DataFrame], outcome: str) -> tuple[str, ...]:
    """What was done, with this run's counts.

    Args:
        tables: Published tables by name.
        outcome: The study's name for its outcome.
    """
    told = []
    steps = {}
    if "attrition" in tables:
        steps = {
            str(key[0]): rows.sort("order")
            for key, rows in tables["attrition"].partition_by("step", as_dict=True).items()
        }
    if "cohort" in steps:
        before, after = steps["cohort"]["n_before"][0], steps["cohort"]["n_after"][-1]
        told.append(
            f"Of {before:,} patients considered, {after:,} form the cohort; categories of their coronary artery "
            "calcium score (CACS) were predicted from one chest radiograph each."
        )
    rates = _pooled(tables.get("event_rates"))
    if rates is not None:
        exposures = ", ".join(wording.words(name) for name in rates["exposure"].unique(maintain_order=True))
        rates = rates.filter(pl.col("exposure") == rates["exposure"][0])
        n, events, years = (rates[column].sum() for column in ("n", "events", "person_years"))
        told.append(
            f"Prognosis by category ({exposures}) is compared in {n:,} patients, of whom {events:,} had {outcome} "
            f"during {years:,.0f} person-years."
        )
    elif "discrimination" in tables:
        told.append("The predicted probabilities and categories are compared with the true CACS of the same patients.")
    return tuple(told)


def _pooled(table: pl.DataFrame | None) -> pl.DataFrame | None:
    """The rows of all sites and origins: the pooled ones, or the only ones."""
    return None if table is None or table.is_empty() else canvas.groups(table)[-1][1]


def key_results(tables: Mapping[str, pl.DataFrame]) -> Printed | None:
    """Discrimination, hazard ratios and positivity with n and interval, a column per site and origin."""
    columns: dict[str, dict[tuple[str, str], str]] = {}
    for table, reader in (
        ("discrimination", _discrimination),
        ("event_rates", _events),
        ("cox", _cox),
        ("comparison", _comparison),
        ("audit_positivity", _audit),
    ):
        # The audit counts other people, in groups that no comparison has: beside one it stays in its own section.
        shown = table in tables and (table != "audit_positivity" or not columns)
        if shown and not tables[table].is_empty():
            for heading, rows in canvas.groups(tables[table]):
                columns.setdefault(heading, {}).update(reader(rows))
    labels = list(dict.fromkeys(label for found in columns.values() for label in found))
    if not labels:
        return None
    bodies = tuple(
        (
            theme,
            tuple(
                (text, *(found.get((theme, text), wording.ABSENT) for found in columns.values()))
                for own, text in labels
                if own == theme
            ),
        )
        for theme in dict.fromkeys(theme for theme, _ in labels)
    )
    headers = (("Result", "", False), *((heading, "", True) for heading in columns))
    return Printed("", "By site and score origin", "", headers, bodies, len(labels))


def _discrimination(rows: pl.DataFrame) -> dict[tuple[str, str], str]:
    theme = "Discrimination: area under the ROC curve"
    whole = rows.filter(pl.col("fold").fill_null("") == "", pl.col("exposure").is_in(_PREDICTED)).sort(
        "threshold", maintain_order=True
    )
    found = {}
    for exposure, rows_of in whole.group_by("exposure", maintain_order=True):
        found[theme, f"Patients, {wording.words(exposure[0])}"] = f"{int(rows_of['n'].to_numpy().max()):,}"
    for row in whole.iter_rows(named=True):
        label = f"{wording.threshold(row['threshold'])}, {wording.words(row['exposure'])}"
        found[theme, label] = estimate(row["auc"], row["lower"], row["upper"], decimals=2)
    return found


def _events(rows: pl.DataFrame) -> dict[tuple[str, str], str]:
    one = rows.filter(pl.col("exposure") == rows["exposure"][0])
    return {(_prognosis(), "Events / patients"): f"{one['events'].sum():,} / {one['n'].sum():,}"}


def _prognosis() -> str:
    return f"Prognosis: adjusted hazard ratio, {HIGHEST} against CAC 0"


def _cox(rows: pl.DataFrame) -> dict[tuple[str, str], str]:
    whole = pl.all_horizontal(pl.col("subgroup", "period").fill_null("") == "")
    chosen = rows.filter(whole, pl.col("level") == HIGHEST, pl.col("model") == "covariates+" + pl.col("exposure"))
    return {(_prognosis(), wording.words(row["exposure"])): hazard_ratio(row) for row in chosen.iter_rows(named=True)}


def _comparison(rows: pl.DataFrame) -> dict[tuple[str, str], str]:
    """Ratio of hazard ratios of the highest category, and difference of C of adjusted models, with paired limits."""
    themes = {
        "ratio_of_hazard_ratios": (f"Prognosis: ratio of hazard ratios of {HIGHEST}, predicted : true", 2),
        "harrell_c_difference": ("Prognosis: Harrell's C, adjusted, predicted less true", 3),
    }
    found = {}
    for statistic, (theme, decimals) in themes.items():
        chosen = rows.filter(
            pl.col("statistic") == statistic,
            pl.col("comparison") == "covariates+" + pl.col("exposure") + " v covariates+true",
            pl.col("method") != "bootstrap",
            pl.col("level").is_null() | (pl.col("level") == HIGHEST),
        )
        for row in chosen.iter_rows(named=True):
            limits = (row[name] for name in ("estimate", "lower", "upper"))
            found[theme, wording.words(row["exposure"])] = estimate(*limits, decimals=decimals)
    return found


def _audit(rows: pl.DataFrame) -> dict[tuple[str, str], str]:
    overall = rows.filter(pl.col("stratum") == "overall", pl.col("positivity").is_not_null())
    theme = "Audit: called positive, %"
    found = {}
    for row in overall.iter_rows(named=True):
        label = f"{wording.threshold(row['threshold'])}, {wording.words(row['exposure'])}"
        shares = (100 * row[name] for name in ("positivity", "lower", "upper"))
        found[theme, label] = f"{estimate(*shares, decimals=1)}; n = {row['n']:,}"
    return found
