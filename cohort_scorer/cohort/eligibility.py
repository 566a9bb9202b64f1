"""Who is in, who is out and why: attrition, and what is known of a patient on the day of a radiograph.

Sees neither pixels nor scores.
"""

import polars as pl

DAYS_PER_YEAR = 365.25


class Attrition:
    """The exclusions of one step, in order, zeros too; the numbers chain.

    Args:
        step: `cohort` or `analysis`.
    """

    def __init__(self, step: str) -> None:
        self._step = step
        self._rows: list[tuple[str, int, int, int]] = []

    def keep(self, people: pl.DataFrame, reason: str, kept: pl.Expr) -> pl.DataFrame:
        """Keep the rows (one per patient) for which `kept` is true; count the others under `reason`."""
        remaining = people.filter(kept)
        self._rows.append((reason, len(people), len(people) - len(remaining), len(remaining)))
        return remaining

    def table(self) -> pl.DataFrame:
        """The table attrition.csv of this step: step, order, reason, n_before, n_excluded, n_after."""
        rows = [(self._step, order, *row) for order, row in enumerate(self._rows, start=1)]
        names = ["step", "order", "reason", "n_before", "n_excluded", "n_after"]
        types = [pl.String, pl.Int64, pl.String, pl.Int64, pl.Int64, pl.Int64]
        return pl.DataFrame(rows, schema=dict(zip(names, types, strict=True)), orient="row")


def age_years(birth: str, on: str) -> pl.Expr:
    """Age in years with its fraction; it reaches a whole number on the birthday itself.

    Args:
        birth: Date column of birth.
        on: Date column of the day.
    """
    born, day = pl.col(birth), pl.col(on)
    before_birthday = (day.dt.month() < born.dt.month()) | (
        (day.dt.month() == born.dt.month()) & (day.dt.day() < born.dt.day())
    )
    whole = day.dt.year().cast(pl.Int64) - born.dt.year().cast(pl.Int64) - before_birthday.cast(pl.Int64)
    since_birthday = day - born.dt.offset_by(pl.format("{}y", whole))
    return whole.cast(pl.Float64) + since_birthday.dt.total_days() / DAYS_PER_YEAR


def age_band(age: str) -> pl.Expr:
    """Ten-year bands of an age column, as text: `0-39`, `40-49` ... `80+`; null where age is missing."""
    decade = (pl.col(age) // 10 * 10).cast(pl.Int64)
    return (
        pl.when(pl.col(age) < 40)
        .then(pl.lit("0-39"))
        .when(pl.col(age) >= 80)
        .then(pl.lit("80+"))
        .when(pl.col(age).is_not_null())
        .then(pl.format("{}-{}", decade, decade + 9))
        .alias("age_band")
    )


def bmi_of_height_and_weight() -> pl.Expr:
    """weight_kg / height_m^2, in kg/m2; null where either is missing."""
    return pl.col("weight_kg") / (pl.col("height_cm") / 100) ** 2


def describe(films: pl.DataFrame, clinical: pl.DataFrame | None) -> pl.DataFrame:
    """Add what is known of the patient on the day of the film.

    The clinical table goes before the film's header. BMI (kg/m2) comes from height and weight where it is not given,
    and is missing outside 10 to 100.

    Args:
        films: patient_id, study_date, site, age_years, sex (the latter three as the header or listing says).
        clinical: The clinical table, or None.

    Returns:
        The films with site (`unknown` where nobody says), age_years on study_date, sex, bmi, birth_date and the other
        clinical columns.
    """
    header = films.rename({"site": "film_site", "age_years": "film_age_years", "sex": "film_sex"})
    if clinical is None:
        empty = {"birth_date": pl.Date, "age_years": pl.Float64, "height_cm": pl.Float64, "weight_kg": pl.Float64}
        known = header.with_columns(
            *(pl.lit(None, dtype).alias(name) for name, dtype in empty.items()),
            pl.lit(None, pl.Float64).alias("bmi"),
            *(pl.lit(None, pl.String).alias(name) for name in ("site", "sex")),
        )
    else:
        others = [column for column in clinical.columns if column == "patient_id" or column not in header.columns]
        known = header.join(clinical.select(others), on="patient_id", how="left", maintain_order="left")
    bmi = pl.coalesce("bmi", bmi_of_height_and_weight())
    age = pl.coalesce(age_years("birth_date", "study_date"), "age_years", "film_age_years")
    return known.with_columns(
        pl.coalesce("site", "film_site", pl.lit("unknown")).alias("site"),
        pl.when(age >= 0).then(age).alias("age_years"),
        pl.coalesce("sex", "film_sex").alias("sex"),
        pl.when(bmi.is_between(10, 100)).then(bmi).alias("bmi"),
    ).drop("film_site", "film_age_years", "film_sex", "height_cm", "weight_kg")
