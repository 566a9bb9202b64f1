"""Who is held out together: cross-validation folds by patient."""

import numpy as np
import polars as pl
from sklearn.model_selection import StratifiedKFold


def assign(people: pl.DataFrame, folds: int, seed: int) -> pl.DataFrame:
    """Add `fold`, 0 to folds - 1, spread evenly over true category and site.

    The folds depend on the seed and on who the patients are, not on the order of rows. Combinations of category and
    site with fewer patients than folds are put together: they cannot be spread over all of them.

    Args:
        people: One row per patient: patient_id, site, true_category.
        folds: Number of folds.
        seed: Seeds the shuffling.

    Returns:
        The patients sorted by site and patient_id.
    """
    people = people.sort("site", "patient_id")
    stratum = pl.struct("true_category", "site")
    size = pl.len().over("true_category", "site")
    strata = people.select(pl.when(size < folds).then(-1).otherwise(stratum.rank("dense").cast(pl.Int64))).to_series()
    fold = np.empty(len(people), np.int64)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(splitter.split(np.zeros(len(people)), strata.to_numpy())):
        fold[held_out] = number
    return people.with_columns(pl.Series("fold", fold))
