"""Who is held out together: cross-validation folds by patient."""

import hashlib

import polars as pl


def assign(people: pl.DataFrame, folds: int, seed: int | str) -> pl.DataFrame:
    """Add `fold`, 0 to folds - 1, spread evenly over true category and site.

    Patients are dealt like cards: within each combination of category and site in the order of a hash of the seed and
    the patient, the next combination going on where the last one ended. Fold sizes differ by one at most, and so do the
    parts of a combination; the folds depend on the seed and on who the patients are, not on the order of rows or on
    the version of any library.

    Args:
        people: One row per patient: patient_id, site, true_category.
        folds: Number of folds.
        seed: Seeds the shuffling.

    Returns:
        The patients sorted by site and patient_id.
    """
    drawn = [
        hashlib.sha256("\x1f".join((str(seed), site or "", patient)).encode()).hexdigest()
        for site, patient in people.select("site", "patient_id").iter_rows()
    ]
    dealt = people.with_columns(pl.Series("drawn", drawn, pl.String)).sort("true_category", "site", "drawn")
    dealt = dealt.with_columns((pl.int_range(pl.len(), dtype=pl.Int64) % folds).alias("fold"))
    return dealt.drop("drawn").sort("site", "patient_id")
