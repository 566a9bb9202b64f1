"""One Cox model of prognosis: from people's categories and covariates to a fit and its rows in cox.csv.

Knows no site and no comparison of models; what it cannot fit keeps its rows, with counts and the reason.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cohort_scorer.errors import ConvergenceError
from cohort_scorer.statistics import cox, firth
from cohort_scorer.statistics.inputs import Booleans, Floats, Integers

MINIMUM_EVENTS = 5
NO_MAXIMUM = "the likelihood has no maximum"
TOO_FEW = "even the penalised likelihood has no maximum: too few events, or a covariate that follows from others"
NO_LIMIT = "a limit or p value of the profile likelihood was not found"


@dataclass(frozen=True)
class Model:
    """What a model holds.

    Attributes:
        name: As in cox.csv: `crude:cxr`, `covariates`, `covariates+true+cxr`.
        exposures: Of true, cxr, integrated.
        covariates: Columns of adjust_for.
    """

    name: str
    exposures: tuple[str, ...]
    covariates: tuple[str, ...]


def models(exposures: Sequence[str], adjust_for: Sequence[str]) -> Iterator[Model]:
    """Every model: crude, M0 (covariates), M1 and M2 (and a predicted or the true category), M3 (and both)."""
    covariates = tuple(adjust_for)
    for exposure in exposures:
        yield Model(f"crude:{exposure}", (exposure,), ())
    if covariates:
        yield Model("covariates", (), covariates)
    joint = [("true", exposure) for exposure in exposures if exposure != "true" and "true" in exposures]
    for used in [*((exposure,) for exposure in exposures), *joint]:
        yield Model("+".join(("covariates", *used)), used, covariates)


@dataclass(frozen=True, eq=False)
class People:
    """The patients of one group in the order of a table.

    Attributes:
        table: Their rows: {exposure}_category and the covariates.
        time: Days of follow-up, > 0, shape (n,).
        event: Whether follow-up ends with the event, shape (n,).
        competing: Whether it ends with a competing event, shape (n,).
        strata: Codes of site and score origin, 0, 1, ..., shape (n,).
        categories: The four categories, lowest first.
        level: Confidence level.
    """

    table: pl.DataFrame
    time: Floats
    event: Booleans
    competing: Booleans
    strata: Integers
    categories: Sequence[str]
    level: float

    @classmethod
    def of(cls, table: pl.DataFrame, categories: Sequence[str], level: float) -> "People":
        """The patients of a part of the analysis set."""
        status = table["status"].to_numpy()
        strata = table.select(pl.struct("site", "score_origin").rank("dense")).to_series().to_numpy()
        return cls(
            table,
            table["time_days"].cast(pl.Float64).to_numpy(),
            status == 1,
            status == 2,
            (strata - 1).astype(np.int64),
            categories,
            level,
        )

    def part(self, member: Booleans) -> "People":
        """Some of them."""
        return People.of(self.table.filter(pl.Series(member)), self.categories, self.level)

    def until(self, days: float) -> "People":
        """The same patients with follow-up that ends there."""
        later = self.time > days
        return replace(
            self, time=np.minimum(self.time, days), event=self.event & ~later, competing=self.competing & ~later
        )

    def codes(self, exposure: str) -> Integers:
        """Codes of an exposure's categories, shape (n,)."""
        codes = dict(zip(self.categories, range(len(self.categories)), strict=True))
        column = self.table[f"{exposure}_category"]
        return column.replace_strict(codes, return_dtype=pl.Int64).to_numpy().astype(np.int64)

    def followed(self, days: float) -> bool:
        """Whether in every stratum somebody is followed that long: beyond it a stratum has no risk."""
        return bool((np.bincount(self.strata, self.time >= days) > 0).all())

    def few_events(self, exposures: Sequence[str]) -> bool:
        """Whether a category with patients has fewer than 5 events."""
        size = len(self.categories)
        for exposure in exposures:
            codes = self.codes(exposure)
            n, events = np.bincount(codes, minlength=size), np.bincount(codes[self.event], minlength=size)
            if (events[n > 0] < MINIMUM_EVENTS).any():
                return True
        return False


@dataclass(frozen=True)
class Term:
    """One row of cox.csv; `values` is the design column, None for a reference level or a column that does not vary."""

    exposure: str | None
    name: str
    level: str | None
    n: int
    n_events: int
    is_reference: bool
    values: Floats | None

    @property
    def label(self) -> str:
        """The term of which the row is a level, one for each exposure."""
        return self.name if self.exposure is None else f"{self.name} {self.exposure}"


@dataclass(frozen=True, eq=False)
class Fitted:
    """A model, its terms, and the fit, or the reason why there is none."""

    model: Model
    terms: Sequence[Term]
    n: int
    n_events: int
    fit: cox.CoxFit | None
    reason: str | None

    @property
    def method(self) -> str:
        """`efron`, `firth` or `not_fitted`."""
        return "not_fitted" if self.fit is None else "firth" if isinstance(self.fit, firth.FirthFit) else "efron"

    def columns(self) -> list[Term]:
        """The terms with a design column, in their order."""
        return [term for term in self.terms if term.values is not None]

    def positions(self, label: str) -> list[int]:
        """The design columns of a term."""
        return [k for k, term in enumerate(self.columns()) if term.label == label]

    def labels(self) -> list[str]:
        """Terms with a design column, once each."""
        return list(dict.fromkeys(term.label for term in self.columns()))

    def position(self, exposure: str, level: str) -> int | None:
        """The design column of a category."""
        found = [k for k, term in enumerate(self.columns()) if (term.exposure, term.level) == (exposure, level)]
        return found[0] if found else None

    def categories(self, level: float) -> pl.DataFrame:
        """Its rows of cox.csv on categories, with the confidence level of the intervals."""
        wanted = [k for k, term in enumerate(self.columns()) if term.exposure]
        return self.rows(level, wanted).filter(pl.col("term") == "category", pl.col("exposure").is_not_null())

    def rows(self, level: float, columns: Sequence[int] | None = None) -> pl.DataFrame:
        """Its rows of cox.csv; intervals of the design columns that are asked for, or all."""
        numbers = iter(self.fit.table(level, columns).iter_rows(named=True)) if self.fit else None
        rows = []
        for term in self.terms:
            row: dict[str, object] = {
                "exposure": term.exposure,
                "term": term.name,
                "level": term.level,
                "n": term.n,
                "n_events": term.n_events,
                "method": self.method,
            }
            if numbers is None:
                row["reason"] = self.reason
            elif term.is_reference:
                row["hr"] = 1.0
            elif term.values is None:
                row |= {"method": "not_fitted", "reason": "the covariate does not vary"}
            else:
                row |= next(numbers)
                if any(row[name] is None for name in ("lower", "upper", "p")):
                    row["reason"] = NO_LIMIT
            rows.append(row)
        return pl.DataFrame(rows, schema=_COLUMNS)


_COLUMNS = {
    **dict.fromkeys(["exposure", "term", "level", "subgroup", "period"], pl.String()),
    **dict.fromkeys(["n", "n_events"], pl.Int64()),
    **dict.fromkeys(["coef", "se", "hr", "lower", "upper", "z", "p"], pl.Float64()),
    **dict.fromkeys(["method", "reason"], pl.String()),
}


def fit_model(people: People, model: Model, *, penalised: bool) -> Fitted:
    """Fit one model, stratified by site and score origin, by Efron's likelihood or by Firth's penalised one."""
    terms = _terms(people, model)
    columns = [term.values for term in terms if term.values is not None]
    n, n_events = len(people.time), int(people.event.sum())
    reason = _hindrance(terms, model, people)
    if reason is None:
        matrix = np.column_stack(columns) if columns else np.empty((n, 0))
        try:
            found = fit_matrix(people, matrix, penalised=penalised)
        except ConvergenceError:
            reason = TOO_FEW if penalised else NO_MAXIMUM
        else:
            return Fitted(model, terms, n, n_events, found, None)
    return Fitted(model, terms, n, n_events, None, reason)


def fit_matrix(people: People, matrix: NDArray[np.float64], *, penalised: bool) -> cox.CoxFit:
    """Fit a model of given columns (n, p).

    Raises:
        ConvergenceError: the likelihood has no maximum.
    """
    if penalised and matrix.shape[1]:
        return firth.fit(people.time, people.event, matrix, strata=people.strata)
    return cox.fit(people.time, people.event, matrix, strata=people.strata)


def _hindrance(terms: Sequence[Term], model: Model, people: People) -> str | None:
    """Why a model must not be fitted: no events, or nobody in the reference category."""
    if not people.event.any():
        return "no events"
    reference = people.categories[0]
    levels = {(term.exposure, term.level) for term in terms}
    if any((exposure, reference) not in levels for exposure in model.exposures):
        return f"nobody is in {reference}, the reference"
    return None


def _terms(people: People, model: Model) -> list[Term]:
    group, event = people.table, people.event
    terms = []
    for exposure in model.exposures:
        column = group[f"{exposure}_category"]
        present = [name for name in people.categories if (column == name).any()]
        terms += [
            _level(exposure, "category", name, (column == name).to_numpy(), event, name == present[0])
            for name in present
        ]
    for name in model.covariates:
        column = group[name]
        if column.dtype.is_numeric():
            values = column.cast(pl.Float64).to_numpy()
            varies = values if len(values) and np.ptp(values) > 0 else None
            terms.append(Term(None, name, None, len(group), int(event.sum()), False, varies))
            continue
        text = column.cast(pl.String)
        levels = text.unique().sort().to_list()
        if len(levels) == 1:
            terms.append(Term(None, name, levels[0], len(group), int(event.sum()), False, None))
            continue
        terms += [_level(None, name, value, (text == value).to_numpy(), event, value == levels[0]) for value in levels]
    return terms


def _level(exposure: str | None, name: str, value: str, member: Booleans, event: Booleans, reference: bool) -> Term:
    values = None if reference else member.astype(np.float64)
    return Term(exposure, name, value, int(member.sum()), int((member & event).sum()), reference, values)
