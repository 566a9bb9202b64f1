"""The groups every table is given for: each site and score origin, and all of them together beside their parts."""

from collections.abc import Iterator, Sequence

import polars as pl

from cohort_scorer import schemas
from cohort_scorer.schemas import ALL


def by_site_and_origin(people: pl.DataFrame) -> Iterator[tuple[str, str, pl.DataFrame]]:
    """Split patients by (site, score_origin), sorted; where there is more than one group, end with all of them."""
    keys = ["site", "score_origin"]
    groups = people.partition_by(keys, as_dict=True) if len(people) else {}
    for (site, origin), group in sorted(groups.items(), key=lambda item: (str(item[0][0]), str(item[0][1]))):
        yield site, origin, group
    if len(groups) > 1:
        yield ALL, ALL, people


def labelled(frame: pl.DataFrame, **columns: object) -> pl.DataFrame:
    """Put constant columns in front of a table; None becomes an empty text."""
    return frame.select(
        *(pl.lit(value, None if value is not None else pl.String).alias(name) for name, value in columns.items()),
        pl.all(),
    )


def joined(parts: Sequence[pl.DataFrame], name: str) -> pl.DataFrame:
    """The parts of a table under one another; without parts, its columns and no row."""
    return pl.concat(parts, how="diagonal_relaxed") if parts else pl.DataFrame(schema=schemas.columns(name))
