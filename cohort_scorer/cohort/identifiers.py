"""Do the identifiers of two tables mean the same people? Ids are text: `00123` is not `123`."""

from dataclasses import dataclass

import polars as pl

_CHANCE = 0.02


@dataclass(frozen=True)
class Match:
    """How many distinct identifiers of a table occur among the known ones.

    Attributes:
        n: Distinct identifiers of the table.
        n_matched: Of these, known ones.
        n_matched_without_zeros: Of these, known once leading zeros are stripped from both.
    """

    n: int
    n_matched: int
    n_matched_without_zeros: int

    @property
    def n_gained(self) -> int:
        """How many more would match without leading zeros."""
        return self.n_matched_without_zeros - self.n_matched

    @property
    def lost_zeros(self) -> bool:
        """Whether so many more match that a spreadsheet has probably turned identifiers into numbers.

        Fewer than one in fifty may be different people whose identifiers differ in a zero.
        """
        return self.n_gained > _CHANCE * self.n


def match(ids: pl.Series, known: pl.Series) -> Match:
    """Compare the identifiers of a table with the known ones; nulls do not count."""
    mine, theirs = ids.drop_nulls().unique(), known.drop_nulls().unique()
    stripped = theirs.str.strip_chars_start("0").unique()
    return Match(
        len(mine),
        int(mine.is_in(theirs.implode()).sum()),
        int(mine.str.strip_chars_start("0").is_in(stripped.implode()).sum()),
    )
