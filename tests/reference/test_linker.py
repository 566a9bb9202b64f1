"""link and the analysis set equal the brute-force linker exactly, attrition included, on random tiny studies."""

import random
from datetime import date, timedelta

import brute_force_linker as slow
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohort_scorer import schemas
from cohort_scorer.cohort import follow_up, pairing

CATEGORIES = schemas.vocabulary("cohort", "true_category")
START = date(2016, 2, 29)
OFFSETS = (-200, -181, -180, -30, -1, 0, 0, 1, 30, 180, 181, 200, 400)
EVENT_TYPES = ("mi", "cardiac_death", "late_revascularization", "other_death", "transplant", "sepsis")
FILM = {
    "patient_id": pl.String,
    "image_id": pl.String,
    "uri": pl.String,
    "study_date": pl.Date,
    "acquisition_time": pl.String,
    "site": pl.String,
    "age_years": pl.Float64,
    "sex": pl.String,
    "is_radiograph": pl.Boolean,
    "is_eligible": pl.Boolean,
}
CACS = {"patient_id": pl.String, "ct_date": pl.Date, "cacs": pl.Float64}
CLINICAL = {
    "patient_id": pl.String,
    "sex": pl.String,
    "birth_date": pl.Date,
    "age_years": pl.Float64,
    "bmi": pl.Float64,
    "height_cm": pl.Float64,
    "weight_kg": pl.Float64,
    "site": pl.String,
    "prior_pci": pl.Boolean,
}
EVENT = {"patient_id": pl.String, "event_type": pl.String, "event_date": pl.Date}
CONTACT = {"patient_id": pl.String, "last_contact_date": pl.Date}
LINKED = [
    *("patient_id", "site", "image_id", "study_date", "ct_date", "days_between", "cacs", "true_category", "age_years"),
    *("sex", "bmi", "birth_date", "prior_pci"),
]
FOLLOWED = ["patient_id", "t0", "time_days", "status", "first_component", "age_at_t0_years"]


def random_study(draw: random.Random, n_patients: int) -> dict:
    """Tables as lists of dicts, crowded round the edges of the rules, and the rules."""
    names = [f"{n:03}" for n in range(n_patients)]
    day = lambda *offsets: START + timedelta(days=draw.choice(offsets or OFFSETS))  # noqa: E731
    seldom = lambda value, other, share=0.1: value if draw.random() < share else other  # noqa: E731
    films, cacs, clinical, events, contacts = [], {}, [], [], []
    for name in names:
        for _ in range(draw.choice((0, 1, 1, 2, 3))):
            is_radiograph = draw.random() < 0.95
            films.append(
                {
                    "patient_id": seldom(None, name, 0.05),
                    "image_id": f"image{len(films) * 7 % 100:03}-{len(films)}",
                    "uri": f"{len(films)}.dcm",
                    "study_date": seldom(None, day(), 0.05),
                    "acquisition_time": draw.choice((None, "08:00:00", "17:30:00")),
                    "site": draw.choice(("A", "B", None)),
                    "age_years": draw.choice((None, 17.0, 55.0)),
                    "sex": draw.choice(("F", "M", None)),
                    "is_radiograph": is_radiograph,
                    "is_eligible": is_radiograph and draw.random() < 0.8,
                }
            )
        for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
            ct = day(-400, 0, 0, 0, 1, 180, 250)
            cacs[name, ct] = draw.choice((0.0, 0.5, 50.0, 99.9, 100.0, 399.9, 400.0, 2000.0))
        if draw.random() < 0.9:
            born = draw.choice(
                (date(1960, 2, 29), date(1998, 2, 28), date(1998, 3, 1), date(1950, 7, 1), date(1961, 7, 1), None)
            )
            clinical.append(
                {
                    "patient_id": name,
                    "sex": draw.choice(("F", "M", None)),
                    "birth_date": seldom(date(2030, 1, 1), born, 0.05),
                    "age_years": draw.choice((None, 17.9, 18.0, 61.5)),
                    "bmi": draw.choice((None, None, 9.9, 10.0, 27.3, 100.0, 101.0)),
                    "height_cm": draw.choice((None, 1.7, 171.0)),
                    "weight_kg": draw.choice((None, 82.5)),
                    "site": draw.choice(("A", "B", None)),
                    "prior_pci": draw.choice((True, False, False, False, False, None)),
                }
            )
        for _ in range(draw.choice((0, 0, 0, 1, 2, 3))):
            near = (*OFFSETS, 60, 90, 91, 210, 211, 500, 500, 600, 600, 700, 799, 800, 801)
            events.append({"patient_id": name, "event_type": draw.choice(EVENT_TYPES), "event_date": day(*near)})
        if draw.random() < 0.93:
            contact = day(0, 30, 180, 210, 500, 800, 800, 800, 800, 800)
            contacts.append({"patient_id": name, "last_contact_date": contact})
    return {
        "films": films,
        "cacs": seldom(None, [{"patient_id": n, "ct_date": d, "cacs": score} for (n, d), score in cacs.items()], 0.15),
        "clinical": clinical,
        "events": events,
        "contacts": contacts,
        "unreadable": {film["image_id"] for film in films if draw.random() < 0.05},
        "scored": {film["image_id"] for film in films if draw.random() < 0.95},
        "link_rules": {
            "maximum_days_between": draw.choice((180, 180, 30, 0)),
            "pairing": draw.choice(("nearest", "nearest", "nearest_before", "nearest_after")),
            "minimum_age_years": 18,
            "exclude_if": draw.choice(([], ["prior_pci"])),
            "exclude_between": draw.choice(([], ["late_revascularization"], ["late_revascularization", "sepsis"])),
        },
        "outcome_rules": {
            "components": ["mi", "cardiac_death", "late_revascularization"],
            "competing": draw.choice(([], ["other_death"], ["other_death"])),
            "terminal": ["transplant", "other_death"],
            "blanking_days": draw.choice(({}, {"late_revascularization": 90}, {"late_revascularization": 0, "mi": 1})),
            "exclude_prior": draw.random() < 0.6,
            "landmark_days": draw.choice((0, 0, 0, 30)),
        },
    }


def fast(study: dict, order: random.Random | None = None):
    """The package's cohort, attrition and follow-up of a study, with its rows shuffled where an order is given."""

    def frame(rows, schema):
        return pl.DataFrame(order.sample(rows, len(rows)) if order else rows, schema=schema)

    cacs = None if study["cacs"] is None else frame(study["cacs"], CACS)
    events = frame(study["events"], EVENT)
    cohort, attrition = pairing.link(
        frame(study["films"], FILM),
        cacs,
        frame(study["clinical"], CLINICAL),
        events,
        pairing.Rules(**study["link_rules"]),
        CATEGORIES,
    )
    images = {"image_id": pl.String}
    followed = follow_up.follow(
        cohort,
        frame([{"image_id": name} for name in sorted(study["unreadable"])], images),
        frame([{"image_id": name} for name in sorted(study["scored"])], images),
        frame(study["contacts"], CONTACT),
        events,
        follow_up.Rules(**study["outcome_rules"]),
    )
    return cohort, attrition, followed


def flow(attrition: pl.DataFrame) -> list[tuple]:
    return attrition.select("reason", "n_before", "n_excluded", "n_after").rows()


def assert_equal_to_brute_force(study: dict) -> None:
    cohort, attrition, followed = fast(study)
    superseded = pairing.superseded(
        pl.DataFrame(study["films"], schema=FILM), cohort, pairing.Rules(**study["link_rules"])
    )
    slow_cohort, slow_attrition = slow.link(
        study["films"], study["cacs"], study["clinical"], study["events"], study["link_rules"]
    )
    assert flow(attrition) == slow_attrition
    assert cohort.select(LINKED).rows() == [tuple(row[name] for name in LINKED) for row in slow_cohort]
    people, slow_flow, n_blanked, n_late = slow.follow(
        slow_cohort, study["unreadable"], study["scored"], study["contacts"], study["events"], study["outcome_rules"]
    )
    assert flow(followed.attrition) == slow_flow
    assert followed.people.select(FOLLOWED).rows() == [tuple(row[name] for name in FOLLOWED) for row in people]
    assert (followed.n_blanked, followed.n_after_last_contact) == (n_blanked, n_late)
    chosen = {row["patient_id"]: row["image_id"] for row in slow_cohort}
    eligible = sorted(
        (film["patient_id"], film["image_id"])
        for film in study["films"]
        if film["is_eligible"] and film["patient_id"] in chosen
    )
    not_taken = [(patient, image) for patient, image in eligible if image != chosen[patient]]
    assert superseded.select("patient_id", "image_id").rows() == not_taken


STUDIES = st.builds(random_study, st.randoms(use_true_random=False), st.integers(1, 12))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(STUDIES)
def test_linker_equals_brute_force(study):
    assert_equal_to_brute_force(study)


@pytest.mark.soak
@settings(max_examples=200, deadline=None)
@given(STUDIES)
def test_linker_equals_brute_force_on_many_studies(study):
    assert_equal_to_brute_force(study)


@pytest.mark.parametrize("seed", range(20))
def test_linker_equals_brute_force_on_studies_of_300_patients(seed):
    assert_equal_to_brute_force(random_study(random.Random(seed), 300))


def test_the_random_studies_reach_every_reason_and_every_outcome():
    reasons, outcomes, categories, n_blanked, n_late = {}, set(), set(), 0, 0
    for seed in range(20):
        cohort, attrition, followed = fast(random_study(random.Random(seed), 300))
        for reason, _, excluded, _ in flow(attrition) + flow(followed.attrition):
            reasons[reason] = reasons.get(reason, 0) + excluded
        outcomes |= set(followed.people["status"])
        n_blanked, n_late = n_blanked + followed.n_blanked, n_late + followed.n_after_last_contact
        categories |= set(cohort["true_category"].drop_nulls())
    assert len(reasons) == 16
    assert min(reasons.values()) > 0
    assert outcomes == {0, 1, 2}
    assert categories == set(CATEGORIES)
    assert min(n_blanked, n_late) > 0


@settings(max_examples=15, deadline=None, derandomize=True)
@given(STUDIES, st.randoms(use_true_random=False))
def test_the_order_of_rows_of_any_table_changes_nothing(study, order):
    cohort, attrition, followed = fast(study)
    for _ in range(2):
        other_cohort, other_attrition, other_followed = fast(study, order)
        assert other_cohort.equals(cohort)
        assert other_attrition.equals(attrition)
        assert other_followed.people.equals(followed.people)
        assert other_followed.attrition.equals(followed.attrition)
        assert (other_followed.n_blanked, other_followed.n_after_last_contact) == (
            followed.n_blanked,
            followed.n_after_last_contact,
        )


def test_the_order_of_rows_changes_nothing_in_a_study_of_2000_patients():
    study = random_study(random.Random(3), 2000)
    study |= {"cacs": study["cacs"] or []}
    cohort, attrition, followed = fast(study)
    assert len(followed.people) > 50
    other_cohort, other_attrition, other_followed = fast(study, random.Random(4))
    assert other_cohort.equals(cohort)
    assert other_attrition.equals(attrition)
    assert other_followed.people.equals(followed.people)
    assert other_followed.attrition.equals(followed.attrition)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(STUDIES)
def test_attrition_chains_and_patients_out_are_the_sum_of_the_reasons(study):
    cohort, attrition, followed = fast(study)
    for table, n_after in ((attrition, len(cohort)), (followed.attrition, len(followed.people))):
        before, excluded, after = (table[name].to_list() for name in ("n_before", "n_excluded", "n_after"))
        assert before[1:] == after[:-1]
        assert after[-1] == n_after == before[0] - sum(excluded)
        assert table["order"].to_list() == list(range(1, len(table) + 1))
    assert followed.attrition["n_before"][0] == len(cohort)
