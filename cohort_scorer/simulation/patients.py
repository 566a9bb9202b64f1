"""Simulated patients: who they are, when they were scanned, what happened to them.

Everything is drawn from a model whose parameters stand below, so that an analysis can be held against the truth.
Knows no image, no file and no table schema. Dates are whole days since 1970-01-01.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Floats: TypeAlias = NDArray[np.float64]
Days: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]
Words: TypeAlias = NDArray[np.str_]

DAYS_PER_YEAR = 365.25
CATEGORIES = ("CAC 0", "CAC 1-99", "CAC 100-399", "CAC 400+")
SITES = {"internal": 2 / 3, "external": 1 / 3}
MAXIMUM_DAYS_BETWEEN = 180

# Calcium: a propensity, standard normal to a good approximation; zero below the first cut and log-normal above it, so
# that 45, 30, 14 and 11 % of patients fall into the four categories, as among patients with stable chest pain.
SHARE_WITHOUT_CALCIUM = 0.45
LOG_MEAN, LOG_SD = 4.39, 1.90  # of log Agatston units where there is calcium
HIGHEST_SCORE = 6000.0  # a log-normal tail goes on, coronary arteries end
PER_AGE_SD, PER_MALE, PER_BODY_SD = 0.36, 0.45, 0.06
PER_RISK_FACTOR = {"hypertension": 0.15, "diabetes": 0.22, "smoking": 0.15, "lipids": 0.12}
PER_VASCULAR_SD = 0.50  # shown by the film, not explained by the clinical variables
UNSEEN_SD = 0.72
AGE_MEAN_YEARS, AGE_SD_YEARS = 59.0, 10.1
SHARE_MALE = 0.54

# Outcomes: MACE exponential with proportional hazards; non-cardiac death Weibull, whatever the calcium.
COMPONENTS = {"cardiac_death": 0.25, "myocardial_infarction": 0.35, "revascularization": 0.40}  # shares of MACE
COMPETING = "noncardiac_death"
LOG_HAZARD_RATIOS = {
    "CAC 1-99": float(np.log(1.9)),
    "CAC 100-399": float(np.log(3.4)),
    "CAC 400+": float(np.log(6.0)),
    "age_at_t0_years": float(np.log(1.03)),
    "male": float(np.log(1.3)),
}
MACE_PER_YEAR = 0.015  # of a woman of AGE_MEAN_YEARS without calcium
DEATH_PER_YEAR, DEATH_SHAPE, DEATH_LOG_HAZARD_RATIO_PER_YEAR = 0.0035, 1.3, 0.085
LOSS_PER_YEAR = 0.02
SHARE_REGISTERED_AFTER_LOSS = 0.10  # of the events after a patient was lost
BLANKING_DAYS = 90
EARLY_REVASCULARIZATION = np.array([0.0, 0.01, 0.06, 0.16])  # by category, within BLANKING_DAYS of the CT
FIRST_FILM, LAST_FILM, END_OF_STUDY = (
    int(np.datetime64(date, "D").astype(np.int64)) for date in ("2011-01-03", "2018-12-31", "2021-12-31")
)

# What later steps must notice and count, as shares of patients. A patient has one fate, drawn without regard to
# calcium and outcome, so that leaving these patients out biases nothing.
FATES = {
    "ct_outside_window": 0.03,
    "without_ct": 0.01,
    "without_film": 0.01,
    "under_age": 0.01,
    "event_between_scans": 0.015,
    "event_before_scans": 0.015,
    "without_follow_up": 0.015,
}
FATES_OF_FILMS = {"lateral_only": 0.01, "unknown_view": 0.02, "unreadable_film": 0.01}
ORDINARY = "ordinary"


@dataclass(frozen=True)
class Patients:
    """One simulated cohort: every array has one entry per patient, in the order of the identifiers.

    Attributes:
        patient_id: Text of nine digits with leading zeros.
        site: A key of SITES.
        fate: A key of FATES or FATES_OF_FILMS, or ORDINARY.
        male: Sex.
        birth: Date of birth.
        body: True body habitus in standard deviations of the body mass index, which films show.
        bmi: Recorded body mass index in kg/m2; NaN where it was not.
        flags: Boolean clinical columns by name.
        vascular: Vascular ageing, standard normal, shown by films and unknown to the clinical variables.
        explained: Expected propensity given age, sex and body mass index.
        expected: Expected propensity given all clinical variables.
        propensity: Calcium propensity.
        cacs: Agatston units, one decimal.
        category: 0 to 3, the position in CATEGORIES.
        film: Date of the film that pairs with the CT.
        ct: Date of the CT.
        extra_film: Date of an earlier film, farther from the CT than `film`; -1 where there is none.
        extra_ct: Date of an earlier CT without a film near it; -1 where there is none.
    """

    patient_id: list[str]
    site: Words
    fate: Words
    male: Flags
    birth: Days
    body: Floats
    bmi: Floats
    flags: dict[str, Flags]
    vascular: Floats
    explained: Floats
    expected: Floats
    propensity: Floats
    cacs: Floats
    category: NDArray[np.int64]
    film: Days
    ct: Days
    extra_film: Days
    extra_ct: Days

    def __len__(self) -> int:
        return len(self.patient_id)

    @property
    def t0(self) -> Days:
        """The later of film and CT, where survival time starts."""
        return np.maximum(self.film, self.ct)

    @property
    def age_at_t0_years(self) -> Floats:
        """Age at t0 in years of 365.25 days, not rounded."""
        return (self.t0 - self.birth) / DAYS_PER_YEAR


@dataclass(frozen=True)
class Outcomes:
    """What happened: one row per event, and one last contact per patient.

    Attributes:
        patient: Position of the event's patient in the cohort.
        event_type: A key of COMPONENTS, or COMPETING.
        event_date: Date of the event.
        last_contact: Date of each patient's last contact.
        planted: Numbers of rows that later steps must set aside.
    """

    patient: NDArray[np.int64]
    event_type: Words
    event_date: Days
    last_contact: Days
    planted: dict[str, int]


def draw_patients(n_patients: int, rng: np.random.Generator, fates: Mapping[str, float]) -> Patients:
    """Draws a cohort.

    Args:
        n_patients: How many, 1 to 9,000,000.
        rng: Where all randomness comes from.
        fates: Share of patients by fate, the rest being ordinary.

    Returns:
        The cohort, sorted by identifier.
    """
    n = n_patients
    # Of nine digits the first two are zero, as in many hospitals: whoever reads them as numbers loses the patients.
    patient_id = [f"{number:09d}" for number in np.sort(rng.choice(9_000_000, n, replace=False))]
    fate = _draw_fates(n, rng, fates)
    site = rng.choice(list(SITES), n, p=list(SITES.values()))

    male = rng.random(n) < SHARE_MALE
    age = 30 + 58 * rng.beta(3.6, 3.6, n)
    age_sd = (age - AGE_MEAN_YEARS) / AGE_SD_YEARS
    body = rng.standard_normal(n)
    bmi = np.round(np.clip(26.8 * np.exp(0.155 * body), 16, 50), 1)
    vascular = rng.standard_normal(n)
    flags = _draw_risk_factors(age_sd, male, body, rng)
    explained = PER_AGE_SD * age_sd + PER_MALE * (male - SHARE_MALE) + PER_BODY_SD * body
    expected = explained + sum(w * (flags[name] - flags[name].mean()) for name, w in PER_RISK_FACTOR.items())
    propensity = expected + PER_VASCULAR_SD * vascular + UNSEEN_SD * rng.standard_normal(n)
    cacs = agatston(propensity)
    category = (cacs > 0).astype(np.int64) + (cacs >= 100) + (cacs >= 400)
    flags["prior_pci"] = rng.random(n) < np.array([0.01, 0.02, 0.04, 0.06])[category]
    flags["prior_cabg"] = rng.random(n) < np.array([0.002, 0.004, 0.01, 0.02])[category]
    flags["cardiac_device"] = rng.random(n) < 0.01

    film, ct, extra_film, extra_ct = _draw_dates(fate, rng)
    age = np.where(fate == "under_age", rng.uniform(12, 17, n), age)
    return Patients(
        patient_id=patient_id,
        site=site,
        fate=fate,
        male=male,
        birth=np.maximum(film, ct) - np.round(age * DAYS_PER_YEAR).astype(np.int64),
        body=body,
        bmi=np.where(rng.random(n) < 0.03, np.nan, bmi),
        flags=flags,
        vascular=vascular,
        explained=explained,
        expected=expected,
        propensity=propensity,
        cacs=cacs,
        category=category,
        film=film,
        ct=ct,
        extra_film=extra_film,
        extra_ct=extra_ct,
    )


def draw_outcomes(patients: Patients, rng: np.random.Generator) -> Outcomes:
    """Draws events and last contacts from the hazards above.

    Times are drawn in continuous days and rounded up, so that an event falls on day 1 at the earliest. The type of a
    major event does not alter its time: a revascularization that blanking would drop becomes an infarction.

    Args:
        patients: The cohort.
        rng: Where all randomness comes from.

    Returns:
        Events sorted by patient and date, and last contacts.
    """
    n, t0 = len(patients), patients.t0
    mace = np.ceil(_mace_days(patients, rng)).astype(np.int64)
    death = np.ceil(_death_days(patients, rng)).astype(np.int64)
    end = END_OF_STUDY - t0
    lost = 1 + np.floor(rng.exponential(DAYS_PER_YEAR / LOSS_PER_YEAR, n)).astype(np.int64)

    kind = rng.choice(list(COMPONENTS), n, p=list(COMPONENTS.values()))
    blanked = (kind == "revascularization") & (t0 + mace - patients.ct <= BLANKING_DAYS)
    kind[blanked] = "myocardial_infarction"
    fatal = kind == "cardiac_death"
    alive = np.minimum(death, np.where(fatal, mace, death))
    contact = np.minimum.reduce([end, lost, alive])

    rows: list[tuple[Flags, str | Words, Days]] = []
    rows.append((mace <= np.minimum(contact, death), kind, t0 + mace))
    rows.append(((death <= contact) & ~(fatal & (mace <= death)), COMPETING, t0 + death))
    # An infarction is often followed by a stent: several rows for one patient, of which the first counts.
    stent = mace + rng.integers(0, 10, n)
    treated = (kind == "myocardial_infarction") & (stent <= contact) & (rng.random(n) < 0.4)
    rows.append((treated, "revascularization", t0 + stent))
    late = (mace > contact) & (mace <= np.minimum(end, alive)) & (rng.random(n) < SHARE_REGISTERED_AFTER_LOSS)
    rows.append((late, kind, t0 + mace))
    early_date = patients.ct + rng.integers(0, BLANKING_DAYS + 1, n)
    early = (rng.random(n) < EARLY_REVASCULARIZATION[patients.category]) & (early_date <= t0 + contact)
    rows.append((early, "revascularization", early_date))
    first = np.minimum(patients.film, patients.ct)
    between = first + np.floor(rng.random(n) * (t0 - first + 1)).astype(np.int64)
    rows.append((patients.fate == "event_between_scans", "myocardial_infarction", between))
    before = first - rng.integers(30, 2000, n)
    rows.append((patients.fate == "event_before_scans", "myocardial_infarction", before))

    patient = np.concatenate([np.flatnonzero(happened) for happened, _, _ in rows])
    event_type = np.concatenate([np.broadcast_to(kinds, n)[happened] for happened, kinds, _ in rows])
    event_date = np.concatenate([dates[happened] for happened, _, dates in rows])
    order = np.lexsort((event_type, event_date, patient))
    return Outcomes(
        patient=patient[order],
        event_type=event_type[order],
        event_date=event_date[order],
        last_contact=t0 + contact,
        planted={
            "revascularizations_within_blanking": int(early.sum()),
            "events_after_last_contact": int(late.sum()),
        },
    )


def agatston(propensity: Floats) -> Floats:
    """Turns calcium propensities into scores.

    Args:
        propensity: Standard normal.

    Returns:
        Agatston units with one decimal: zero for SHARE_WITHOUT_CALCIUM of a standard normal population, log-normal
        for the others up to HIGHEST_SCORE, and never so little that rounding would make it zero.
    """
    rank = (ndtr(propensity) - SHARE_WITHOUT_CALCIUM) / (1 - SHARE_WITHOUT_CALCIUM)
    positive = rank > 0
    score = np.exp(LOG_MEAN + LOG_SD * ndtri(np.where(positive, rank, 0.5)))
    return np.where(positive, np.clip(np.round(score, 1), 0.1, HIGHEST_SCORE), 0.0)


def category_cuts() -> Floats:
    """The propensities, shape (3,), above which a score is above 0, at least 100, at least 400 Agatston units."""
    share_below = ndtr((np.log([100.0, 400.0]) - LOG_MEAN) / LOG_SD)
    within = SHARE_WITHOUT_CALCIUM + (1 - SHARE_WITHOUT_CALCIUM) * share_below
    return np.asarray(ndtri([SHARE_WITHOUT_CALCIUM, *within]), dtype=np.float64)


def expected_prevalence(patients: Patients) -> Floats:
    """Mean probability of the four categories given everybody's clinical variables, shape (4,), sum 1."""
    residual_sd = np.hypot(PER_VASCULAR_SD, UNSEEN_SD)
    above = ndtr((patients.expected[:, None] - category_cuts()) / residual_sd).mean(axis=0)
    return np.asarray(-np.diff([1.0, *above, 0.0]), dtype=np.float64)


def _draw_fates(n: int, rng: np.random.Generator, fates: Mapping[str, float]) -> Words:
    """Gives each fate its share of n patients, and at least one of a hundred or more."""
    counts = [max(round(share * n), int(n >= 100)) for share in fates.values()]
    words = np.repeat([*fates, ORDINARY], [*counts, n - sum(counts)])
    return rng.permutation(words)


def _draw_risk_factors(age_sd: Floats, male: Flags, body: Floats, rng: np.random.Generator) -> dict[str, Flags]:
    """Draws the boolean risk factors from logistic models on age, sex and body habitus."""
    log_odds = {
        "hypertension": -0.3 + 0.6 * age_sd + 0.4 * body,
        "diabetes": -1.9 + 0.3 * age_sd + 0.4 * body,
        "smoking": -1.3 + 0.8 * male - 0.2 * age_sd,
        "lipids": -0.5 + 0.3 * age_sd + 0.2 * body,
    }
    return {name: rng.random(len(male)) < 1 / (1 + np.exp(-value)) for name, value in log_odds.items()}


def _draw_dates(fate: Words, rng: np.random.Generator) -> tuple[Days, Days, Days, Days]:
    """Draws the dates of film, CT, extra film and extra CT.

    Extra scans lie before the pair and may not replace it: the film is farther from the CT, and no film lies within
    MAXIMUM_DAYS_BETWEEN of the earlier CT.
    """
    n = len(fate)
    film = rng.integers(FIRST_FILM, LAST_FILM + 1, n)
    apart = np.minimum(np.floor(rng.exponential(35, n)).astype(np.int64), MAXIMUM_DAYS_BETWEEN)
    far = rng.integers(MAXIMUM_DAYS_BETWEEN + 1, 400, n)
    apart = np.where(fate == "ct_outside_window", far, apart)
    ct = film + apart * np.where(rng.random(n) < 0.65, 1, -1)

    ordinary = fate == ORDINARY
    with_film, with_ct = rng.random((2, n)) < [[0.12], [0.05]]
    earlier_film = ct - apart - rng.integers(1, 400, n)
    extra_film = np.where(ordinary & with_film, earlier_film, -1)
    first_film = np.where(extra_film >= 0, np.minimum(film, extra_film), film)
    earlier_ct = first_film - rng.integers(MAXIMUM_DAYS_BETWEEN + 1, 1500, n)
    return film, ct, extra_film, np.where(ordinary & with_ct, earlier_ct, -1)


def _mace_days(patients: Patients, rng: np.random.Generator) -> Floats:
    """Draws the days from t0 to the first major event, were there nothing else: exponential, proportional hazards."""
    by_category = np.array([0.0, *(LOG_HAZARD_RATIOS[category] for category in CATEGORIES[1:])])
    log_ratio = (
        by_category[patients.category]
        + LOG_HAZARD_RATIOS["age_at_t0_years"] * (patients.age_at_t0_years - AGE_MEAN_YEARS)
        + LOG_HAZARD_RATIOS["male"] * patients.male
    )
    return rng.exponential(DAYS_PER_YEAR / (MACE_PER_YEAR * np.exp(log_ratio)))


def _death_days(patients: Patients, rng: np.random.Generator) -> Floats:
    """Draws the days from t0 to non-cardiac death: Weibull, rising with age."""
    log_ratio = DEATH_LOG_HAZARD_RATIO_PER_YEAR * (patients.age_at_t0_years - AGE_MEAN_YEARS)
    cumulative = rng.standard_exponential(len(patients)) / (DEATH_PER_YEAR * np.exp(log_ratio))
    return np.asarray(DAYS_PER_YEAR * cumulative ** (1 / DEATH_SHAPE), dtype=np.float64)
