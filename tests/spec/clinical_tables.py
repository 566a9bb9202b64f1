"""Small studies written as text: what a clinician would draw on paper, turned into the tables of the tool.

A table is text with columns between `|`; the first line names them. Films are written `a 2020-01-31`, with a time
(`a 2020-01-31 08:00`), a view (`a 2020-01-31 lateral`) or as what is no film (`a 2020-01-31 CT`); several stand
between `;`, as scans and events do.
"""

from datetime import date

import polars as pl

from cohort_scorer import schemas
from cohort_scorer.cohort import follow_up, pairing

CATEGORIES = schemas.vocabulary("cohort", "true_category")
_FILM = {"acquisition_time": pl.String, "site": pl.String, "age_years": pl.Float64, "sex": pl.String}
_CLINICAL = {
    "patient_id": pl.String,
    "sex": pl.String,
    "birth_date": pl.Date,
    "age_years": pl.Float64,
    "bmi": pl.Float64,
    "height_cm": pl.Float64,
    "weight_kg": pl.Float64,
    "site": pl.String,
}


def rows(text: str) -> list[dict[str, str]]:
    """The rows of a table, by column."""
    head, *lines = [[cell.strip() for cell in line.split("|")] for line in text.strip().splitlines()]
    return [dict(zip(head, line, strict=True)) for line in lines]


def named(text: str) -> dict[str, dict[str, str]]:
    """The rows of a table by their column `case`."""
    return {row["case"]: row for row in rows(text)}


def day(text: str) -> date:
    return date.fromisoformat(text)


def parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(";") if part.strip()]


def films(text: str, patient: str = "1") -> pl.DataFrame:
    """`a 2020-01-31 08:00; b 2020-02-01 lateral` -> rows as the index gives them."""
    found = []
    for part in parts(text):
        name, when, *more = part.split()
        found.append(
            {
                "patient_id": patient,
                "image_id": name,
                "uri": f"{name}.dcm",
                "study_date": day(when),
                "acquisition_time": next((word for word in more if ":" in word), None),
                "site": "A",
                "age_years": 60.0,
                "sex": "F",
                "is_radiograph": "CT" not in more,
                "is_eligible": not {"lateral", "CT"} & set(more),
            }
        )
    return pl.DataFrame(found, schema_overrides=_FILM)


def cacs(text: str, patient: str = "1") -> pl.DataFrame:
    """`2020-01-31 100; 2021-01-31 0.5` -> the table cacs; a date alone has the score 100."""
    found = [(patient, day(words[0]), float(words[1]) if words[1:] else 100.0) for words in map(str.split, parts(text))]
    return pl.DataFrame(found, schema={"patient_id": pl.String, "ct_date": pl.Date, "cacs": pl.Float64}, orient="row")


def events(text: str, patient: str = "1") -> pl.DataFrame:
    """`mi 2020-01-31; death 2020-02-28` -> the table events."""
    found = [(patient, words[0], day(words[1])) for words in map(str.split, parts(text))]
    return pl.DataFrame(
        found, schema={"patient_id": pl.String, "event_type": pl.String, "event_date": pl.Date}, orient="row"
    )


def clinical(**facts: object) -> pl.DataFrame:
    return pl.DataFrame([{"patient_id": "1", **facts}], schema=_CLINICAL)


def link(
    the_films: pl.DataFrame,
    the_cacs: pl.DataFrame | None,
    the_clinical: pl.DataFrame | None = None,
    the_events: pl.DataFrame | None = None,
    **rules: object,
) -> tuple[pl.DataFrame, str]:
    """The cohort, and the reason for which a lone patient is out (empty where nobody is)."""
    defaults = {
        "maximum_days_between": 180,
        "pairing": "nearest",
        "minimum_age_years": 18,
        "exclude_if": [],
        "exclude_between": [],
    }
    cohort, attrition = pairing.link(
        the_films, the_cacs, the_clinical, the_events, pairing.Rules(**{**defaults, **rules}), CATEGORIES
    )
    return cohort, why(attrition)


def why(attrition: pl.DataFrame) -> str:
    return ", ".join(attrition.filter(pl.col("n_excluded") > 0)["reason"])


def follow(film: str, ct: str, the_events: str, last_contact: str, **rules: object) -> follow_up.FollowUp:
    """What becomes of one patient with this film, this CT, these events and this last contact (empty: none)."""
    defaults = {
        "components": ["mi", "cardiac_death", "pci"],
        "competing": ["other_death"],
        "terminal": ["transplant"],
        "blanking_days": {},
        "exclude_prior": True,
        "landmark_days": 0,
    }
    cohort, reason = link(films(f"a {film}"), cacs(ct) if ct else None, clinical(birth_date=date(1960, 1, 1)))
    assert reason == ""
    contact = pl.DataFrame(
        [("1", day(last_contact))] if last_contact else [],
        schema={"patient_id": pl.String, "last_contact_date": pl.Date},
        orient="row",
    )
    return follow_up.follow(
        cohort,
        pl.DataFrame(schema={"image_id": pl.String}),
        pl.DataFrame({"image_id": ["a"]}),
        contact,
        events(the_events),
        follow_up.Rules(**{**defaults, **rules}),
    )


def in_words(found: follow_up.FollowUp) -> str:
    """`event mi on day 30`, `competing on day 3`, `censored on day 500`, or `out: <reason>`."""
    if found.people.is_empty():
        return f"out: {why(found.attrition)}"
    row = found.people.row(0, named=True)
    kind = {0: "censored", 1: f"event {row['first_component']}", 2: "competing"}[row["status"]]
    return f"{kind} on day {row['time_days']}"
