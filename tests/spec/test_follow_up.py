"""From when to when, and how it ended: methods.md section 1, items 4 and 5, one small table after another.

Components of the outcome: mi, cardiac_death, pci. Competing: other_death. Terminal: transplant.
"""

import pytest
from clinical_tables import cacs, clinical, day, events, films, follow, in_words, link, named, parts

from cohort_scorer.cohort import follow_up

# Film 2020-01-01, CT 2020-01-11: t0 is the later, 2020-01-11. Last contact 2022-01-10, day 730.
COURSES = named(
    """
    case                               | events                                        | course
    nothing happens                    |                                               | censored on day 730
    an event                           | mi 2020-02-10                                 | event mi on day 30
    the first of several               | mi 2021-01-01; mi 2020-02-10                  | event mi on day 30
    death the day of the infarction    | mi 2020-02-10; other_death 2020-02-10         | event mi on day 30
    cardiac death that day             | mi 2020-02-10; cardiac_death 2020-02-10       | event cardiac_death on day 30
    transplant that day                | transplant 2020-02-10; mi 2020-02-10          | event mi on day 30
    competing first                    | other_death 2020-02-10; mi 2020-02-11         | competing on day 30
    competing that day, transplant too | transplant 2020-02-10; other_death 2020-02-10 | competing on day 30
    terminal but neither               | transplant 2020-02-10; mi 2020-02-11          | censored on day 30
    a type that nobody named           | sepsis 2020-02-10                             | censored on day 730
    the day of the last contact        | mi 2022-01-10                                 | event mi on day 730
    after the last contact             | mi 2022-01-11                                 | censored on day 730
    the day after t0                   | mi 2020-01-12                                 | event mi on day 1
    on t0                              | mi 2020-01-11                                 | out: event between the scans
    between the scans                  | mi 2020-01-05                                 | out: event between the scans
    on the day of the first scan       | mi 2020-01-01                                 | out: event between the scans
    competing between the scans        | other_death 2020-01-05                        | out: event between the scans
    the day before the first scan      | mi 2019-12-31                                 | out: prior event
    long before                        | mi 2010-01-01                                 | out: prior event
    competing before the first scan    | other_death 2019-12-31                        | out: prior event
    terminal between the scans         | transplant 2020-01-05                         | out: no time after t0
    terminal on t0                     | transplant 2020-01-11                         | out: no time after t0
    terminal before the first scan     | transplant 2019-12-31                         | out: no time after t0
    an unnamed type between the scans  | sepsis 2020-01-05                             | censored on day 730
    """
)


@pytest.mark.parametrize("case", COURSES)
def test_the_course_after_the_later_scan(case):
    row = COURSES[case]
    assert in_words(follow("2020-01-01", "2020-01-11", row["events"], "2022-01-10")) == row["course"]


STARTS = named(
    """
    case           | film       | CT         | t0
    film first     | 2020-01-01 | 2020-01-11 | 2020-01-11
    CT first       | 2020-01-11 | 2020-01-01 | 2020-01-11
    one day        | 2020-01-11 | 2020-01-11 | 2020-01-11
    no CT is known | 2020-01-11 |            | 2020-01-11
    """
)


@pytest.mark.parametrize("case", STARTS)
def test_follow_up_starts_at_the_later_scan(case):
    row = STARTS[case]
    found = follow(row["film"], row["CT"], "mi 2020-02-10", "2022-01-10")
    assert found.people["t0"].to_list() == [day(row["t0"])]
    assert in_words(found) == "event mi on day 30"
    # Born on 1 January 1960: 60 years and 10 days on t0, whatever the age on the day of the film.
    assert found.people["age_at_t0_years"][0] == pytest.approx(60 + 10 / 365.25)


# prior_events = "ignore": what happened before the first scan does not count; between the scans it still does.
IGNORED = named(
    """
    case                       | events                       | course
    prior infarction           | mi 2019-12-31                | censored on day 730
    prior and later infarction | mi 2019-12-31; mi 2020-02-10 | event mi on day 30
    between the scans          | mi 2020-01-01                | out: event between the scans
    prior transplant           | transplant 2019-12-31        | out: no time after t0
    """
)


@pytest.mark.parametrize("case", IGNORED)
def test_prior_events_can_be_ignored(case):
    row = IGNORED[case]
    found = follow("2020-01-01", "2020-01-11", row["events"], "2022-01-10", exclude_prior=False)
    assert in_words(found) == row["course"]


# blanking_days = { pci = 90 }, from the CT of 2020-01-01; day 90 is 2020-03-31. Film 2020-01-11 is t0.
BLANKED = named(
    """
    case                          | events                         | blanked | course
    day 0, between the scans      | pci 2020-01-01                 | 1       | censored on day 720
    day 30                        | pci 2020-01-31                 | 1       | censored on day 720
    day 90                        | pci 2020-03-31                 | 1       | censored on day 720
    day 91                        | pci 2020-04-01                 | 0       | event pci on day 81
    blanked, then an infarction   | pci 2020-01-31; mi 2020-02-10  | 1       | event mi on day 30
    blanked, then another         | pci 2020-01-31; pci 2020-05-10 | 1       | event pci on day 120
    the infarction is not blanked | mi 2020-01-31                  | 0       | event mi on day 20
    before the CT                 | pci 2019-12-31                 | 0       | out: prior event
    two on one day                | pci 2020-01-31; pci 2020-01-31 | 2       | censored on day 720
    """
)


@pytest.mark.parametrize("case", BLANKED)
def test_early_revascularisation_is_blanked_from_the_ct_and_counted(case):
    row = BLANKED[case]
    found = follow("2020-01-11", "2020-01-01", row["events"], "2021-12-31", blanking_days={"pci": 90})
    assert (in_words(found), found.n_blanked) == (row["course"], int(row["blanked"]))


def test_without_ct_blanking_counts_from_t0():
    for event, course in (("2020-04-10", "censored on day 720"), ("2020-04-11", "event pci on day 91")):
        found = follow("2020-01-11", "", f"pci {event}", "2021-12-31", blanking_days={"pci": 90})
        assert in_words(found) == course


# landmark_days = 30: time counts from 2020-02-10, day 30 after t0 (2020-01-11).
LANDMARK = named(
    """
    case                                | events                 | last contact | course
    nothing happens                     |                        | 2022-02-09   | censored on day 730
    an event the day after the landmark | mi 2020-02-11          | 2022-02-09   | event mi on day 1
    an event on the landmark            | mi 2020-02-10          | 2022-02-09   | out: event or lost by the landmark
    an event before it                  | mi 2020-01-12          | 2022-02-09   | out: event or lost by the landmark
    an event on t0                      | mi 2020-01-11          | 2022-02-09   | out: event between the scans
    competing before it                 | other_death 2020-02-01 | 2022-02-09   | out: event or lost by the landmark
    terminal before it                  | transplant 2020-02-01  | 2022-02-09   | out: event or lost by the landmark
    terminal on t0                      | transplant 2020-01-11  | 2022-02-09   | out: event or lost by the landmark
    terminal between the scans          | transplant 2020-01-05  | 2022-02-09   | out: event or lost by the landmark
    lost on the landmark                |                        | 2020-02-10   | out: event or lost by the landmark
    lost before the landmark            |                        | 2020-01-20   | out: event or lost by the landmark
    lost the day after the landmark     |                        | 2020-02-11   | censored on day 1
    """
)


@pytest.mark.parametrize("case", LANDMARK)
def test_the_landmark_excludes_who_had_an_event_or_was_lost_by_it(case):
    row = LANDMARK[case]
    found = follow("2020-01-01", "2020-01-11", row["events"], row["last contact"], landmark_days=30)
    assert in_words(found) == row["course"]


# Last contact against t0 (2020-01-11) and against events.
CONTACT = named(
    """
    case                          | events                       | last contact | late | course
    no row of follow-up           | mi 2020-02-10                |              | 0    | out: no follow-up
    last contact before t0        |                              | 2020-01-10   | 0    | out: no time after t0
    last contact on t0            |                              | 2020-01-11   | 0    | out: no time after t0
    last contact the day after t0 |                              | 2020-01-12   | 0    | censored on day 1
    an event after it             | mi 2020-02-10                | 2020-02-09   | 1    | censored on day 29
    a death after it              | other_death 2020-02-10       | 2020-02-09   | 1    | censored on day 29
    two events after it           | mi 2020-02-10; mi 2020-03-10 | 2020-02-09   | 2    | censored on day 29
    an unnamed type after it      | sepsis 2020-02-10            | 2020-02-09   | 0    | censored on day 29
    """
)


@pytest.mark.parametrize("case", CONTACT)
def test_events_after_the_last_contact_are_not_used_and_counted(case):
    row = CONTACT[case]
    found = follow("2020-01-01", "2020-01-11", row["events"], row["last contact"])
    assert (in_words(found), found.n_after_last_contact) == (row["course"], int(row["late"]))


def test_years_shifted_into_the_future_are_years_like_others():
    assert in_words(follow("2177-01-01", "2177-01-11", "mi 2177-02-10", "2179-01-10")) == "event mi on day 30"


SCORING = named(
    """
    case                                 | refused | scored | reason
    refused by scoring: no second choice | a       | b      | unreadable
    without a score                      |         | b      | no score
    refused and scored                   | a       | a; b   | unreadable
    scored                               |         | a      |
    """
)


@pytest.mark.parametrize("case", SCORING)
def test_a_film_that_scoring_refused_takes_its_patient_out(case):
    row = SCORING[case]
    cohort, _ = link(films("a 2020-07-01; b 2020-06-01"), cacs("2020-07-01"), clinical(birth_date=day("1960-01-01")))
    found = follow_up.follow(
        cohort,
        films("".join(f"{name} 2020-07-01;" for name in parts(row["refused"]))).select("image_id")
        if row["refused"]
        else cohort.select("image_id").clear(),
        films("".join(f"{name} 2020-07-01;" for name in parts(row["scored"]))).select("image_id"),
        cohort.select("patient_id", last_contact_date=day("2022-01-01")),
        events(""),
        follow_up.Rules(["mi"], [], [], {}, True, 0),
    )
    excluded = {name: n for name, n in found.attrition.select("reason", "n_excluded").iter_rows() if n}
    assert excluded == ({row["reason"]: 1} if row["reason"] else {})
    assert len(found.people) == (row["reason"] == "")
