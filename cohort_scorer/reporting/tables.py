"""Published tables as a page prints them: codes in words, estimates with their intervals, counts with separators.

Knows no section and no HTML. Every number stands in the CSV; here it is only rounded.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from cohort_scorer import schemas
from cohort_scorer.reporting import wording

FOLDED_ROWS = 40
LONGEST_ROWS = 400
"""Above FOLDED_ROWS a page folds a table away; above LONGEST_ROWS it only links the CSV."""

_DECIMALS = {
    "hr": 2, "rate_per_1000_py": 1, "person_years": 0, "chi2": 2, "lr_chi2": 2, "loglik": 1, "loglik_null": 1, "aic": 1,
    "events_per_parameter": 1, "z": 2, "tau_days": 0,
}  # fmt: skip
_PERCENT = frozenset(
    ("sensitivity", "specificity", "ppv", "npv", "predicted_margin", "true_margin", "coverage", "uptake", "positivity",
     "prevalence", "apparent_prevalence")
)  # fmt: skip
_FREE_TEXT = frozenset(("level", "subgroup", "period"))
_GROUP = ("site", "score_origin")
_REFERENCE = schemas.vocabulary("kaplan_meier", "category")[0]


@dataclass(frozen=True)
class Printed:
    """A table ready to print.

    Attributes:
        name: Name of the CSV, without its ending.
        caption: What the table is.
        note: How to read it.
        headers: (label, explanation, holds numbers) of each column.
        bodies: (heading, rows) of each group of rows; one heading may be empty.
        n_rows: Rows of the whole CSV.
    """

    name: str
    caption: str
    note: str
    headers: tuple[tuple[str, str, bool], ...]
    bodies: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]
    n_rows: int

    @property
    def folded(self) -> bool:
        """Too long to stand open on a page."""
        return sum(len(rows) for _, rows in self.bodies) > FOLDED_ROWS


def number(value: float | None, decimals: int = 3) -> str:
    """A rounded number with a true minus sign; an absent one is a dash."""
    return wording.ABSENT if value is None else f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def p_value(p: float | None) -> str:
    """A p value as journals print it."""
    if p is None:
        return wording.ABSENT
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def estimate(value: float | None, lower: float | None, upper: float | None, *, decimals: int = 3) -> str:
    """`2.31 (1.70 to 3.14)`; without limits the value alone."""
    if value is None or lower is None or upper is None:
        return number(value, decimals)
    return f"{number(value, decimals)} ({number(lower, decimals)} to {number(upper, decimals)})"


def printed(name: str, frame: pl.DataFrame) -> Printed:
    """Any published table: groups as headings, intervals beside their estimates, columns without values left out.

    Args:
        name: The schema's name.
        frame: Its rows, or some of them.
    """
    schema = schemas.load(name)
    fields = {field["name"]: field for field in schema["fields"]}
    frame = frame.select(column for column in frame.columns if frame[column].null_count() < len(frame))
    shown = [column for column in frame.columns if column not in _GROUP and not column.endswith(("lower", "upper"))]
    columns = [(column, *_limits(frame.columns, column)) for column in shown]
    headers = tuple(_header(column, fields.get(column, {}), frame[column].dtype.is_numeric()) for column in shown)
    bodies = tuple(
        (heading, tuple(tuple(_cell(row, *column) for column in columns) for row in rows.iter_rows(named=True)))
        for heading, rows in grouped(frame)
    )
    return Printed(name, schema["title"], schema["description"], headers, bodies, len(frame))


def linked(name: str, frame: pl.DataFrame) -> Printed:
    """A table that a page names with its CSV, without its rows."""
    schema = schemas.load(name)
    return Printed(name, schema["title"], schema["description"], (), (), len(frame))


def crosstab(frame: pl.DataFrame) -> Printed:
    """True categories as rows and predicted ones as columns, a group of rows per exposure, site and origin."""
    schema = schemas.load("crosstab")
    categories = schemas.vocabulary("crosstab", "predicted_category")
    bodies = []
    for heading, part in grouped(frame):
        for exposure, rows in _split(part, "exposure"):
            found = {(true, predicted): n for true, predicted, n in rows.select(frame.columns[-3:]).iter_rows()}
            lines = []
            for true in categories:
                counts = [found.get((true, predicted), 0) for predicted in categories]
                lines.append((true, *(f"{count:,}" for count in (*counts, sum(counts)))))
            bodies.append((f"{heading}: {wording.words(exposure)}", tuple(lines)))
    labels = [
        ("True category", "", False),
        *((f"Predicted {name}", "", True) for name in categories),
        ("Total", "", True),
    ]
    return Printed("crosstab", schema["title"], schema["description"], tuple(labels), tuple(bodies), len(frame))


def data_problems(frame: pl.DataFrame) -> Printed:
    """What was found, warnings first: a heading per problem with what to make of it, a row per table."""
    schema = schemas.load("data_problems")
    bodies = []
    for _, rows in _split(frame.sort(pl.col("severity") != "warning", maintain_order=True), "problem"):
        lines = []
        for row in rows.iter_rows(named=True):
            where = ".".join(part for part in (row["table"], row["column"]) if part)
            against = f", against {row['compared_with']}" if row["compared_with"] else ""
            found = f"{row['n']:,} of {row['of']:,}"
            lines.append((f"{where}{against}", found, number(row["percent"], 1), wording.sentence(row["severity"])))
        bodies.append((f"{wording.sentence(rows['problem'][0])}. {rows['advice'][0]}", tuple(lines)))
    headers = (("Where", "", False), ("Found", "", True), ("Percent", "", True), ("Severity", "", False))
    return Printed("data_problems", schema["title"], schema["description"], headers, tuple(bodies), len(frame))


def baseline(frame: pl.DataFrame) -> Printed:
    """One row per characteristic: `n (percent)`, `mean (SD)` or `median (quartiles)` in each column.

    Args:
        frame: The rows of all patients, or those of sites, which get a heading each.
    """
    schema = schemas.load("baseline")
    groups = [name for name in (*schemas.vocabulary("crosstab", "true_category"), "overall") if frame[name].count()]
    differences = [name for name in _DIFFERENCES if frame[name].count()]
    bodies = [
        ("" if site == schemas.ALL else wording.place(site), tuple(_characteristics(rows, groups, differences)))
        for site, rows in _split(frame, "site")
    ]
    headers = (
        ("Characteristic", "", False),
        *((wording.sentence(name), "", True) for name in groups),
        ("Missing", "", True),
        *((_DIFFERENCES[name], "", True) for name in differences),
    )
    note = (
        "Percentages are of patients without a missing value; standardised differences are the largest between two "
        "true categories, or two sites."
    )
    return Printed("baseline", schema["title"], note, headers, tuple(bodies), len(frame))


_DIFFERENCES = {
    "standardised_difference": "Standardised difference",
    "site_standardised_difference": "Between sites",
}


def _characteristics(
    frame: pl.DataFrame, groups: Sequence[str], differences: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    levels = set(frame.select("variable", "level").iter_rows())
    for rows in frame.partition_by("variable", "level", maintain_order=True):
        first = rows.row(0, named=True)
        if first["level"] == "false" and (first["variable"], "true") in levels:
            continue
        values = {row["statistic"]: row for row in rows.iter_rows(named=True)}
        label = wording.sentence(first["variable"]) + (
            f": {first['level']}" if first["level"] not in (None, "", "true") else ""
        )
        missing = wording.ABSENT if first["missing"] is None else f"{first['missing']:,}"
        for pattern, needed in _PATTERNS.items():
            if all(name in values for name in needed):
                cells = [_characteristic(values, name, needed) for name in groups]
                others = [number(first[name], 2) for name in differences]
                yield f"{label}, {pattern}", *cells, missing, *others
                break


_PATTERNS = {
    "n (%)": ("n", "percent"),
    "n": ("n",),
    "mean (SD)": ("mean", "sd"),
    "median (quartiles)": ("median", "lower_quartile", "upper_quartile"),
}


def _characteristic(values: dict[str, dict[str, Any]], column: str, needed: Sequence[str]) -> str:
    first, *others = ((values[name][column] if name in values else None) for name in needed)
    shown = number(first, 0 if needed[0] == "n" else 1)
    inside = " to ".join(number(other, 1) for other in others if other is not None)
    return f"{shown} ({inside})" if inside and first is not None else shown


def cox(frame: pl.DataFrame) -> Printed:
    """Predicted beside true: hazard ratios of each category against CAC 0, crude and adjusted, with events."""
    exposures = [name for name, _ in _split(frame.drop_nulls("exposure"), "exposure")]
    whole = pl.all_horizontal(pl.col("subgroup", "period").fill_null("") == "")
    bodies = []
    for heading, part in grouped(frame.filter(whole, pl.col("exposure").is_not_null())):
        found = {(row["level"], row["model"]): row for row in part.iter_rows(named=True)}
        lines = []
        for level in schemas.vocabulary("kaplan_meier", "category"):
            cells = [_hazard(found, level, name) for name in exposures]
            if any(cell != (wording.ABSENT,) * 3 for cell in cells):
                lines.append((level, *(text for cell in cells for text in cell)))
        bodies.append((heading, tuple(lines)))
    labels = [
        (f"{wording.words(name)}: {kind}", "", True)
        for name in exposures
        for kind in ("events / n", "crude", "adjusted")
    ]
    note = (
        "Hazard ratios against CAC 0, from one analysis set. Adjusted: for the covariates in [comparison] adjust_for."
    )
    caption = "Cox regression: predicted beside true category"
    return Printed("cox", caption, note, (("Category", "", False), *labels), tuple(bodies), len(frame))


def cox_parts(frame: pl.DataFrame, column: str, caption: str) -> Printed:
    """Adjusted hazard ratios in parts of the follow-up (period) or of the patients (subgroup), a row per category."""
    rows = frame.filter(pl.col(column).fill_null("") != "", pl.col("level") != _REFERENCE)
    exposures = [name for name, _ in _split(rows, "exposure")]
    bodies = []
    for heading, part in grouped(rows.filter(pl.col("model") == "covariates+" + pl.col("exposure"))):
        lines = []
        for cells in part.partition_by(column, "level", maintain_order=True):
            found = {row["exposure"]: row for row in cells.iter_rows(named=True)}
            shown = [found.get(name) for name in exposures]
            counts = [wording.ABSENT if row is None else f"{row['n_events']:,} / {row['n']:,}" for row in shown]
            ratios = [hazard_ratio(row) for row in shown]
            pairs = (text for pair in zip(counts, ratios, strict=True) for text in pair)
            lines.append((wording.sentence(cells[column][0]), cells["level"][0], *pairs))
        bodies.append((heading, tuple(lines)))
    labels = [(f"{wording.words(name)}: {kind}", "", True) for name in exposures for kind in ("events / n", "adjusted")]
    headers = ((wording.sentence(column), "", False), ("Category", "", False), *labels)
    note = "Hazard ratios against CAC 0."
    if (rows["method"] == "firth").any():
        note += " Some parts have few events and are fitted by Firth's penalised likelihood: see the method in the CSV."
    return Printed("cox", caption, note, headers, tuple(bodies), len(frame))


def sensitivity(frame: pl.DataFrame) -> Printed:
    """Adjusted hazard ratios of every exposure, a row per analysis and category."""
    exposures = [name for name, _ in _split(frame, "exposure")]
    bodies = []
    is_reference = pl.col("level").eq_missing(schemas.vocabulary("kaplan_meier", "category")[0])
    for heading, part in grouped(frame.filter(~is_reference)):
        lines = []
        for rows in part.partition_by("analysis", "value", "level", maintain_order=True):
            first = rows.row(0, named=True)
            adjusted = {row["exposure"]: row for row in rows.iter_rows(named=True) if row["model"][:6] != "crude:"}
            lines.append(
                (
                    wording.analysis(first["analysis"], first["value"]),
                    f"{first['n_events_model']:,} / {first['n_model']:,}",
                    first["level"] or wording.ABSENT,
                    *(hazard_ratio(adjusted.get(name)) for name in exposures),
                )
            )
        bodies.append((heading, tuple(lines)))
    headers = (
        ("Analysis", "", False),
        ("Events / n", "Of all patients compared.", True),
        ("Category", "", False),
        *((f"{wording.words(name)}, adjusted", "", True) for name in exposures),
    )
    schema = schemas.load("sensitivity")
    note = "Hazard ratios against CAC 0. Each analysis differs from the study file in one choice; none was chosen here."
    return Printed("sensitivity", schema["title"], note, headers, tuple(bodies), len(frame))


def _hazard(found: dict[tuple[str, str], dict[str, Any]], level: str, exposure: str) -> tuple[str, str, str]:
    crude, adjusted = (found.get((level, model)) for model in (f"crude:{exposure}", f"covariates+{exposure}"))
    known = adjusted or crude
    if known is None:
        return (wording.ABSENT,) * 3
    return (f"{known['n_events']:,} / {known['n']:,}", hazard_ratio(crude), hazard_ratio(adjusted))


def hazard_ratio(row: dict[str, Any] | None) -> str:
    """A row of cox.csv: the ratio with its interval, `1 (reference)`, or `not fitted`."""
    if row is None:
        return wording.ABSENT
    if row["hr"] is None:
        return "not fitted" if row["method"] == "not_fitted" else wording.ABSENT
    return (
        "1 (reference)"
        if row["lower"] is None and row["hr"] == 1
        else estimate(row["hr"], row["lower"], row["upper"], decimals=2)
    )


def grouped(frame: pl.DataFrame) -> list[tuple[str, pl.DataFrame]]:
    """Rows by site and score origin, the pooled ones last; a table without them is one body without heading."""
    known = [column for column in _GROUP if column in frame.columns]
    if not known:
        return [("", frame)]
    parts = frame.partition_by(known, as_dict=True, maintain_order=True)
    ordered = sorted(parts.items(), key=lambda part: set(part[0]) == {schemas.ALL})
    if known == ["site"]:
        return [(wording.place(site), rows) for (site,), rows in ordered]
    return [
        (wording.group(*(dict(zip(known, key, strict=True)).get(name) for name in _GROUP)), rows)
        for key, rows in ordered
    ]


def _split(frame: pl.DataFrame, column: str) -> Iterable[tuple[str, pl.DataFrame]]:
    parts = frame.partition_by(column, as_dict=True, maintain_order=True)
    return [(str(key[0]), rows) for key, rows in parts.items()]


def _limits(columns: Sequence[str], column: str) -> tuple[str, str]:
    """The names of the limits that belong to a column: its own, or the bare ones that follow it."""
    if f"{column}_lower" in columns:
        return f"{column}_lower", f"{column}_upper"
    follows = columns[columns.index(column) + 1 : columns.index(column) + 2]
    return ("lower", "upper") if list(follows) == ["lower"] and "upper" in columns else ("", "")


def _header(column: str, field: dict[str, Any], numeric: bool) -> tuple[str, str, bool]:
    label = field.get("title", wording.sentence(column))
    return (
        f"{label}, %" if column in _PERCENT else label,
        field.get("description", ""),
        numeric and column != "threshold",
    )


def _cell(row: dict[str, Any], column: str, lower: str, upper: str) -> str:
    value = row[column]
    if column in _SPECIAL:
        return _SPECIAL[column](value)
    if isinstance(value, float):
        factor = 100 if column in _PERCENT else 1
        scaled = [None if part is None else factor * part for part in (value, row.get(lower), row.get(upper))]
        return estimate(*scaled, decimals=1 if column in _PERCENT else _DECIMALS.get(column, 3))
    if isinstance(value, int):
        return f"{value:,}"
    text = ("" if value is None else str(value)) if column in _FREE_TEXT else wording.sentence(value)
    return text or wording.ABSENT


_SPECIAL: dict[str, Callable[[Any], str]] = {
    "threshold": wording.threshold,
    "p": p_value,
    "p_holm": p_value,
    "model": wording.model,
    "comparison": wording.comparison,
    "horizon_years": lambda years: wording.ABSENT if years is None else f"{years:.3g}",
    "fold": lambda fold: fold or "pooled",
    "chosen": lambda chosen: "yes" if chosen else "no",
}
