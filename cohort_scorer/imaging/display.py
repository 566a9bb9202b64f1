"""Stored values -> displayed values, in the order of PS3.4 N.2. Knows no file and no size of an image.

A film without look-up table and window needs its bits at the top of 16, a sign and perhaps an inversion: a shift and
one XOR (`raise_in_place`). Any other is mapped by one table from stored words to displayed values (`table`), made of
the modality transform, the VOI transform and, at the end, at most one inversion.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint16]

FULL_RANGE: Final = 2**16 - 1

_TIE: Final = 2**-20  # of one step: what differs by rounding errors alone, as twins in either polarity do, stays equal
_TABLES_KEPT: Final = 64


@dataclass(frozen=True)
class LookUpTable:
    """A modality or VOI look-up table (PS3.3 C.11.1.1, C.11.2.1.1). Inputs before its first or after its last are they.

    Attributes:
        first: The input that the first entry is for.
        entries: The outputs for consecutive inputs: uint16, little endian.
    """

    first: int
    entries: bytes

    def __call__(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Look up inputs, between entries by linear interpolation."""
        outputs = np.frombuffer(self.entries, "<u2").astype(np.float64)
        return np.interp(inputs - self.first, np.arange(outputs.size), outputs)


@dataclass(frozen=True)
class Display:
    """All that decides how the stored values of a film are displayed.

    Attributes:
        bits: bits_stored.
        low_bit: The lowest bit of a word that holds pixels (PS3.5 8.1.1).
        is_signed: Stored values are two's complement.
        is_inverted: Low presentation values are white (PS3.3 C.7.6.3.1.2, C.11.6.1).
        slope: RescaleSlope.
        intercept: RescaleIntercept.
        modality_lut: Takes the place of slope and intercept.
        voi: `lut`, `window`, `invalid_window` (one that PS3.3 C.11.2.1.2 has no meaning for: not applied) or `none`.
        center: WindowCenter, of a window.
        width: WindowWidth, of a window.
        function: VOILUTFunction, of a window.
        voi_lut: Of `lut`.
    """

    bits: int
    low_bit: int
    is_signed: bool
    is_inverted: bool
    slope: float
    intercept: float
    modality_lut: LookUpTable | None
    voi: str
    center: float
    width: float
    function: str
    voi_lut: LookUpTable | None


def display_of(row: Mapping[str, Any], modality_lut: LookUpTable | None, voi_lut: LookUpTable | None) -> Display:
    """Gather what a row of the index and the film's look-up tables say of its display.

    Of several windows or VOI LUTs the first counts, and a VOI LUT counts before a window.
    """
    center, width = row["window_center"], row["window_width"]
    function = (row["voi_lut_function"] or "LINEAR").upper()
    voi = "lut" if voi_lut is not None else _window(center, width, function)
    is_window = voi == "window"
    return Display(
        bits=int(row["bits_stored"]),
        low_bit=_low_bit(row),
        is_signed=row["pixel_representation"] == 1,
        is_inverted=_is_inverted(row),
        slope=row["rescale_slope"] or 1.0,
        intercept=row["rescale_intercept"] or 0.0,
        modality_lut=modality_lut,
        voi=voi,
        center=center if is_window else 0.0,
        width=width if is_window else 0.0,
        function=function if is_window else "",
        voi_lut=voi_lut,
    )


def raise_in_place(row: Mapping[str, Any], words: Words) -> None:
    """Take stored words to the top of 16 bits, unsigned, white high as far as no table is needed to know.

    Low values are white by MONOCHROME1, by INVERSE and by a negative slope, which inverts back where one of these does.

    Args:
        row: A row of the index.
        words: uint16, of any shape; overwritten.
    """
    bits = int(row["bits_stored"])
    sign = 1 << 15 if row["pixel_representation"] == 1 else 0
    low_is_white = _is_inverted(row) != ((row["rescale_slope"] or 1.0) < 0)
    flip = sign ^ ((FULL_RANGE << (16 - bits)) & FULL_RANGE if low_is_white else 0)
    if low_bit := _low_bit(row):
        words >>= np.uint16(low_bit)
    words <<= np.uint16(16 - bits)
    if flip:
        words ^= np.uint16(flip)


def table(display: Display) -> Words | None:
    """Return the table from stored words to displayed values.

    Returns:
        uint16 of shape (65536,), read-only: 0 black to 65535 white; None where displayed values are a straight line
        of the stored ones, so that `raise_in_place` does as well once percentiles are stretched.
    """
    if display.voi in ("none", "invalid_window") and display.modality_lut is None:
        return None
    return _table(display)


@lru_cache(_TABLES_KEPT)
def _table(display: Display) -> Words:
    stored = np.arange(FULL_RANGE + 1) >> display.low_bit & (1 << display.bits) - 1
    if display.is_signed:
        stored[stored >= 1 << display.bits - 1] -= 1 << display.bits
    values = stored.astype(np.float64)
    with np.errstate(all="ignore"):  # slopes and windows may be of any size
        shares = np.nan_to_num(_presented(display, _modality_values(display, values)))
    if display.is_inverted:
        shares = 1.0 - shares
    found = np.floor(shares * FULL_RANGE + (0.5 + _TIE)).astype(np.uint16)
    found.setflags(write=False)
    return found


def _modality_values(display: Display, stored: NDArray[np.float64]) -> NDArray[np.float64]:
    if display.modality_lut is not None:
        return display.modality_lut(stored)
    return np.asarray(stored * display.slope + display.intercept, dtype=np.float64)


def _presented(display: Display, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map modality values to shares of the presentation range.

    That of a look-up table is taken to lie between the lowest and the highest value that it gives: percentiles follow,
    so that the width it declares, which files get wrong, does not matter.
    """
    if display.voi == "window":
        return _windowed(display, values)
    outputs = values if display.voi_lut is None else display.voi_lut(values)
    low, high = float(outputs.min()), float(outputs.max())
    return np.asarray((outputs - low) / ((high - low) or 1.0), dtype=np.float64)


def _windowed(display: Display, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return shares of the output range by PS3.3 C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID), .2 (LINEAR_EXACT)."""
    center, width = display.center, display.width
    if display.function == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(-4.0 * (values - center) / width)), dtype=np.float64)
    if display.function == "LINEAR":
        center, width = center - 0.5, width - 1.0
    if width == 0.0:
        return (values > center).astype(np.float64)
    return np.asarray(np.clip((values - center) / width + 0.5, 0.0, 1.0), dtype=np.float64)


def _window(center: float | None, width: float | None, function: str) -> str:
    if center is None and width is None:
        return "none"
    if center is None or width is None or function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return "invalid_window"
    return "window" if width >= 1.0 or (width > 0.0 and function != "LINEAR") else "invalid_window"


def _is_inverted(row: Mapping[str, Any]) -> bool:
    """Tell whether low presentation values are white: MONOCHROME1 and INVERSE say the same thing."""
    return bool(row["photometric_interpretation"] == "MONOCHROME1" or row["presentation_lut_shape"] == "INVERSE")


def _low_bit(row: Mapping[str, Any]) -> int:
    return 0 if row["encapsulated"] else max(int(row["high_bit"]) + 1 - int(row["bits_stored"]), 0)
