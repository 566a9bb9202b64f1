"""Cox models refitted on resamples of the patients, all models on the same ones. Knows models only as designs.

Resamples enter as case weights, which under Efron differ from replicated rows: those would be tied with themselves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cohort_scorer.statistics.cox import CoxFit
from cohort_scorer.statistics.firth import LARGEST_STEP
from cohort_scorer.statistics.inputs import Booleans, Floats, Integers
from cohort_scorer.statistics.pairs import Pairs
from cohort_scorer.statistics.partial_likelihood import CaseWeights, Point, evaluate
from cohort_scorer.statistics.risk_sets import RiskSets

_MAXIMUM_ITERATIONS = 60
_STEP_TOLERANCE = 1e-8
_CHUNK = 200_000
"""Patients times resamples that are worked on at a time."""


@dataclass(frozen=True, eq=False)
class Refitted:
    """One model on every resample; rows of NaN where the likelihood has no maximum that was found.

    Attributes:
        coefficients: Shape (B, p).
        lr_chi2: Likelihood ratio statistic against the model without terms, shape (B,).
    """

    coefficients: Floats
    lr_chi2: Floats


@dataclass(frozen=True, eq=False)
class Discriminated:
    """Harrell's C of one refitted model; NaN where it has no fit.

    Attributes:
        resample: On its own resample, shape (B,).
        original: On the patients as they are, shape (B,).
    """

    resample: Floats
    original: Floats


@dataclass(frozen=True, eq=False)
class Resamples:
    """How often each of n patients is drawn in each resample of n with replacement; the same ones at every reading.

    Attributes:
        n: Number of patients.
        seeds: One for each resample.
    """

    n: int
    seeds: Sequence[np.random.SeedSequence]

    @classmethod
    def drawn_by(cls, generator: np.random.Generator, n: int, replicates: int) -> "Resamples":
        """Children of a generator, one for each resample."""
        parent = generator.bit_generator.seed_seq
        assert isinstance(parent, np.random.SeedSequence)
        return cls(n, parent.spawn(replicates))

    def __iter__(self) -> Iterator[Integers]:
        """One vector of counts, shape (n,), after another."""
        for seed in self.seeds:
            draws = np.random.Generator(np.random.PCG64(seed)).integers(self.n, size=self.n)
            yield np.bincount(draws, minlength=self.n)

    def leave_out(self, codes: Integers, event: Booleans) -> bool:
        """Whether a level that has events has none in one of the resamples."""
        died = np.flatnonzero(event)
        levels = np.unique(codes[died])
        place = np.searchsorted(levels, codes[died])
        return any((np.bincount(place, counts[died], len(levels)) == 0).any() for counts in self)


def refit(
    fits: Mapping[str, CoxFit],
    resamples: Resamples,
    *,
    penalised: bool,
    advance: Callable[[int], None],
) -> dict[str, Refitted]:
    """Refit models of the same patients on the same resamples.

    Every fit starts at the coefficients of all patients. A step is taken with all patients' information, one with the
    resample's own, and then with that one kept until the coefficients stand still; penalised fits renew theirs at
    every step.

    Args:
        fits: Models of the same times, events and strata, by name; unweighted, with at least one term.
        resamples: Of these patients.
        penalised: Whether to maximise Firth's likelihood.
        advance: Called with the number of resamples done since.

    Returns:
        By the name of the model; nothing without resamples.
    """
    designs = {name: _Design.of(fitted) for name, fitted in fits.items()}
    first = next(iter(designs.values()))
    found: dict[str, list[tuple[Floats, Floats]]] = {name: [] for name in designs}
    for chunk in chunks(resamples):
        case = CaseWeights.of(first.sets, chunk[:, first.sets.order].astype(np.float64))
        null = _null(first, case)
        for name, design in designs.items():
            beta, loglik = _maximise(design, case, penalised)
            if penalised:
                null = _evaluate(design, case, np.zeros_like(beta), False, True).loglik
            found[name].append((beta / design.scale, 2 * (loglik - null)))
        advance(len(chunk))
    return {
        name: Refitted(*(np.concatenate(parts) for parts in zip(*values, strict=True)))
        for name, values in found.items()
        if values
    }


def discriminate(
    fits: Mapping[str, CoxFit],
    refitted: Mapping[str, Refitted],
    resamples: Resamples,
    *,
    advance: Callable[[int], None],
) -> dict[str, Discriminated]:
    """Harrell's C of refitted models.

    Args:
        fits: As given to `refit`.
        refitted: What it found.
        resamples: As given to `refit`.
        advance: Called with the number of resamples done since.

    Returns:
        By the name of the model; nothing without resamples.
    """
    if not refitted:
        return {}
    sets = next(iter(fits.values())).sets
    place = np.empty(len(sets.order), dtype=np.int64)
    place[sets.order] = np.arange(len(place))
    pairs = Pairs.build(sets.time[place], sets.event[place] == 1, sets.stratum[place])
    # Patients with the same covariates have the same score to the last bit.
    patterns = {name: np.unique(fitted.covariates, axis=0, return_inverse=True) for name, fitted in fits.items()}
    found = {name: np.full((len(refitted[name].lr_chi2), 2), np.nan) for name in fits}
    for number, counts in enumerate(resamples):
        for name, (rows, row) in patterns.items():
            coefficients = refitted[name].coefficients[number]
            if np.isfinite(coefficients).all():
                rank = np.unique(rows @ coefficients, return_inverse=True)[1].reshape(-1)
                found[name][number] = pairs.harrell_c(rank[row.reshape(-1)], counts)
        advance(1)
    return {name: Discriminated(values[:, 0], values[:, 1]) for name, values in found.items()}


@dataclass(frozen=True, eq=False)
class _Design:
    """Standardised columns (p, n) in the order of the sets, and where all patients have their maximum."""

    sets: RiskSets
    columns: Floats
    scale: Floats
    beta: Floats
    information: Floats

    @classmethod
    def of(cls, fitted: CoxFit) -> "_Design":
        z = fitted.covariates
        scale = z.std(axis=0)
        scaled = (z - z.mean(axis=0)) / scale
        return cls(
            fitted.sets,
            np.ascontiguousarray(scaled[fitted.sets.order].T),
            scale,
            fitted.coefficients * scale,
            np.asarray(np.linalg.inv(fitted.covariance * np.outer(scale, scale)), dtype=np.float64),
        )


def chunks(resamples: Resamples) -> Iterator[Integers]:
    """The resamples some at a time, shape (b, n): as many as a processor's cache holds."""
    size = max(1, _CHUNK // max(1, resamples.n))
    held: list[Integers] = []
    for vector in resamples:
        held.append(vector)
        if len(held) == size:
            yield np.stack(held)
            held = []
    if held:
        yield np.stack(held)


def _null(design: _Design, case: CaseWeights) -> Floats:
    """Log likelihoods (b,) without terms."""
    return evaluate(design.sets, case, design.columns[:0], np.empty((len(case.rows), 0)), information=False).loglik


def _maximise(design: _Design, case: CaseWeights, penalised: bool) -> tuple[Floats, Floats]:
    """Coefficients (b, p) of the standardised columns under b vectors of case weights, and log likelihoods (b,)."""
    b = len(case.rows)
    beta = np.tile(design.beta, (b, 1))
    best = np.full(b, np.nan)
    information = np.tile(design.information, (b, 1, 1))
    moving = np.arange(b)
    point = _evaluate(design, case, beta, False, penalised)
    step = _step(information, point.gradient)
    for iteration in range(_MAXIMUM_ITERATIONS):
        if penalised:
            step = step * np.minimum(1.0, LARGEST_STEP / np.abs(step).max(axis=1))[:, None]
        renew = penalised or iteration == 0
        candidate = _evaluate(design, case.part(moving), beta[moving] + step, renew, penalised)
        falls = ~(candidate.loglik >= point.loglik - 1e-12 * np.abs(point.loglik))
        step = np.where(falls[:, None], step / 2, step)
        taken = ~falls
        beta[moving[taken]] += step[taken]
        still = taken & (np.abs(step).max(axis=1) <= _STEP_TOLERANCE)
        best[moving[still]] = candidate.loglik[still]
        going = ~still
        if not going.any():
            break
        point = Point(
            np.where(taken, candidate.loglik, point.loglik)[going],
            np.where(taken[:, None], candidate.gradient, point.gradient)[going],
            point.information,
            point.moment,
        )
        if renew:
            information[moving[taken]] = candidate.information[taken]
        step = np.where(taken[:, None], _step(information[moving], candidate.gradient), step)[going]
        moving = moving[going]
    else:
        beta[moving] = np.nan
    return beta, best


def _evaluate(design: _Design, case: CaseWeights, beta: Floats, information: bool, penalised: bool) -> Point:
    return evaluate(design.sets, case, design.columns, beta, information=information, penalised=penalised)


def _step(information: Floats, gradient: Floats) -> Floats:
    """Newton's steps (b, p); NaN where the information is singular, so that such a fit never stands still."""
    known = np.asarray(np.isfinite(information).all(axis=(1, 2)) & np.isfinite(gradient).all(axis=1))
    safe = np.where(known[:, None, None], information, np.eye(gradient.shape[1]))
    weak = np.linalg.matrix_rank(safe, hermitian=True) < gradient.shape[1]
    safe[weak] = np.eye(gradient.shape[1])
    step = np.linalg.solve(safe, np.where(known[:, None], gradient, 0.0)[..., None])[..., 0]
    return np.where((known & ~weak)[:, None], step, np.nan)
