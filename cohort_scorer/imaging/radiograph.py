"""One index row -> one normalised square image, or a reason. Knows no network and no table.

Stored values are shifted to the top of 16 bits, so that bits above bits_stored fall off, made unsigned, inverted where
the header says that low values are white, and mapped by what look-up tables and windows it declares; only then resized
(area averages of integers), so that a MONOCHROME1 film and its MONOCHROME2 twin are equal to the last bit. Percentiles
of the resized film become black and white.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from cohort_scorer.imaging import codecs, display, look_up_tables
from cohort_scorer.imaging.display import FULL_RANGE, LookUpTable
from cohort_scorer.imaging.files import path_of
from cohort_scorer.imaging.refusal import Refused

Image16 = NDArray[np.uint16]


@dataclass(frozen=True)
class Preprocessing:
    """Everything but the size that decides a pixel's value.

    Attributes:
        version: Raised when the code changes a value that no other parameter tells. 2: modality and VOI transforms.
        modality: How stored values become modality values (PS3.3 C.11.1), where a window or LUT needs them: the first
            item of ModalityLUTSequence, interpolated, else RescaleSlope and RescaleIntercept.
        voi: How modality values become presentation values (PS3.3 C.11.2): the first item of VOILUTSequence,
            interpolated, else the first window by its VOILUTFunction, where it is valid; else as they are.
        voi_at: The transforms are applied to every stored pixel, before the film is resized.
        inversion: One, after the VOI transform, where MONOCHROME1 or INVERSE or both say so.
        lower_percentile: Percentile of the film (padding apart) that becomes 0.
        upper_percentile: Percentile that becomes 65535.
        shrink: Interpolation towards fewer pixels: averages of integers over areas, first down the columns, then along
            the rows, each rounded to 16 bits.
        enlarge: Interpolation towards more pixels.
        shape: Whole film centred in a square.
        padding: Value around the film: black, as air beside the patient.
        luminance: How coloured pictures become grey.
    """

    version: int = 2
    modality: str = "first_lut_else_rescale"
    voi: str = "first_lut_else_first_window"
    voi_at: str = "stored_pixels"
    inversion: str = "monochrome1_or_inverse"
    lower_percentile: float = 1.0
    upper_percentile: float = 99.0
    shrink: str = "area_of_columns_then_rows"
    enlarge: str = "linear"
    shape: str = "letterbox"
    padding: int = 0
    luminance: str = "itu-r 601"

    def identifier(self, size: int) -> str:
        """Return the preprocessing_id for images of `size` pixels: 16 hexadecimal digits over every parameter."""
        text = json.dumps(asdict(self) | {"size": size}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


PREPROCESSING: Final = Preprocessing()

_ROWS_HASHED = 128
_BORDER = 0.05  # of each side
_CENTRE = 0.25  # from each side


@dataclass(frozen=True)
class Fetched:
    """All that an image is made from.

    Attributes:
        value: As `codecs.read_value`.
        modality_lut: First item of ModalityLUTSequence.
        voi_lut: First item of VOILUTSequence.
    """

    value: NDArray[np.uint8]
    modality_lut: LookUpTable | None = None
    voi_lut: LookUpTable | None = None


@dataclass(frozen=True)
class Radiograph:
    """A film as a network sees it.

    Attributes:
        image: uint16 of shape (size, size), 0 black to 65535 white, upright as stored.
        pixel_sha256: Hex SHA-256 of Rows, Columns and at least 128 evenly spaced rows (all rows of smaller films) of
            the decoded values, at the top of 16 bits and in displayed polarity. Equal for one film in any lossless
            syntax and for any size of `image`; it differs between films, not for a change between the rows sampled.
        quality: The quality columns of data_schemas/network_outputs.json.
        decode_seconds: Time from the stored bytes to pixels.
        resize_seconds: Time from the pixels to the image and all that is told of it.
        read_seconds: Time from the file to the stored bytes; 0 where somebody else read them.
    """

    image: Image16
    pixel_sha256: str
    quality: Mapping[str, float | bool | str | None]
    decode_seconds: float
    resize_seconds: float
    read_seconds: float = 0.0


def read(row: Mapping[str, Any], root: Path, size: int) -> Radiograph:
    """Decode, orient, resize and normalise one film.

    Args:
        row: An eligible row of the index.
        root: The folder that row["uri"] is relative to.
        size: Side of the image in pixels.

    Raises:
        Refused: any reason of step score in data_schemas/refusals.json but non_finite_output.
    """
    return develop(row, fetch(row, root), size)


def fetch(row: Mapping[str, Any], root: Path) -> Fetched:
    """Read all that an image is made from; opens the file, decodes nothing.

    Raises:
        Refused: as `codecs.read_value` and `look_up_tables.read`, or outside_root.
    """
    path = path_of(root, row["uri"])
    return Fetched(codecs.read_value(row, path), *look_up_tables.read(row, path))


def develop(row: Mapping[str, Any], fetched: Fetched, size: int) -> Radiograph:
    """Make the image of one film from what `fetch` read, which it overwrites; opens no file.

    Raises:
        Refused: truncated, decode_failed, shape_mismatch or no_contrast.
    """
    started = time.perf_counter()
    words = _words(codecs.decode(row, fetched.value))
    decoded = time.perf_counter()
    sha256 = _pixel_sha256(row, words)
    shown = display.display_of(row, fetched.modality_lut, fetched.voi_lut)
    table = display.table(shown)
    if table is None:
        display.raise_in_place(row, words)
    else:
        cv2.LUT(words, table, words)
    small = _resized(words, size)
    normalised = _normalised(small)
    image = np.full((size, size), PREPROCESSING.padding, np.uint16)
    top, left = (size - small.shape[0]) // 2, (size - small.shape[1]) // 2
    image[top : top + small.shape[0], left : left + small.shape[1]] = normalised
    quality = (
        _measured(small, normalised) | _declared(row) | {"aspect": words.shape[1] / words.shape[0], "voi": shown.voi}
    )
    return Radiograph(image, sha256, quality, decoded - started, time.perf_counter() - decoded)


def fingerprint(row: Mapping[str, Any], fetched: Fetched) -> str:
    """Hash all that a film holds: hex SHA-256 of Rows, Columns and its values.

    Values are taken at the top of 16 bits, unsigned and white high, but before look-up tables and windows.

    Args:
        row: A decodable row of the index.
        fetched: What `fetch` read; overwritten.

    Raises:
        Refused: as `codecs.decode`.
    """
    film = _words(codecs.decode(row, fetched.value))
    display.raise_in_place(row, film)
    return hashlib.sha256(f"{film.shape}".encode() + film.tobytes()).hexdigest()


def _words(stored: codecs.Pixels) -> Image16:
    """Return stored values as 16-bit words that may be overwritten."""
    if stored.dtype == np.uint16 and stored.flags.writeable:
        return stored  # type: ignore[return-value]
    return stored.astype(np.uint16)


def _resized(film: Image16, size: int) -> Image16:
    rows, columns = film.shape
    longest = max(rows, columns)
    width, height = (max(1, (2 * length * size + longest) // (2 * longest)) for length in (columns, rows))
    if longest < size:
        return np.asarray(cv2.resize(film, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint16)
    # The mean over an area is that of its columns' means. Within one step of the exact mean, in 2/5 of the time of both
    # directions at once: four columns as channels of one pixel are summed side by side, and few rows are left to sum.
    fours = np.lib.stride_tricks.as_strided(film, (rows, columns // 4, 4), (film.strides[0], 8, 2))
    rest = film[:, columns // 4 * 4 :]
    parts = [
        cv2.resize(part, (part.shape[1], height), interpolation=cv2.INTER_AREA).reshape(height, -1)
        for part in (fours, rest)
        if part.size
    ]
    low = parts[0] if len(parts) == 1 else np.hstack(parts)
    return np.asarray(cv2.resize(low, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint16)


def _normalised(small: Image16) -> Image16:
    """Stretch the percentiles to the full range.

    Percentiles are values of the film: the smallest with at least that share of pixels at or below it.
    """
    # Not np.bincount, which keeps the interpreter's lock.
    counts = cv2.calcHist([small], [0], None, [FULL_RANGE + 1], [0, FULL_RANGE + 1]).ravel()
    shares = np.array((PREPROCESSING.lower_percentile, PREPROCESSING.upper_percentile)) / 100 * small.size
    low, high = np.searchsorted(np.cumsum(counts.astype(np.int64)), shares).tolist()
    if high <= low:
        raise Refused("no_contrast", "the percentiles of the film are one value")
    # At most 65535 * 65535 + 32767: fits 32 bits.
    stretched = (small.clip(low, high) - np.uint16(low)) * np.uint32(FULL_RANGE)
    stretched += np.uint32((high - low) // 2)
    stretched //= np.uint32(high - low)
    return stretched.astype(np.uint16)


def _pixel_sha256(row: Mapping[str, Any], words: Image16) -> str:
    rows, columns = words.shape
    step = max(1, rows // _ROWS_HASHED)
    digest = hashlib.sha256(f"{rows} x {columns}".encode())
    sampled = words[::step].copy()
    display.raise_in_place(row, sampled)
    digest.update(sampled.data)
    return digest.hexdigest()


def _measured(small: Image16, normalised: Image16) -> dict[str, float]:
    extremes = np.count_nonzero((small == small.min()) | (small == small.max()))
    inner, centre = _within(normalised, round, _BORDER), _within(normalised, int, _CENTRE)
    total, inside = cv2.sumElems(normalised)[0], cv2.sumElems(inner)[0]
    border_mean = (total - inside) / max(normalised.size - inner.size, 1)
    # With the edge repeated, a Laplacian sums to zero: its norm alone tells its standard deviation.
    edges = cv2.norm(cv2.Laplacian(normalised, cv2.CV_32F, borderType=cv2.BORDER_REPLICATE))
    spread = math.sqrt(cv2.norm(normalised) ** 2 - total**2 / normalised.size)
    return {
        "clipped_percent": 100.0 * float(extremes) / small.size,
        "border_centre": (border_mean - cv2.mean(centre)[0]) / FULL_RANGE,
        "sharpness": edges / spread,
    }


def _within(image: Image16, whole: Callable[[float], int], margin: float) -> Image16:
    rows, columns = (slice(whole(length * margin), length - whole(length * margin)) for length in image.shape)
    return image[rows, columns]


def _declared(row: Mapping[str, Any]) -> dict[str, bool | None]:
    intent = (row["presentation_intent_type"] or "").upper()
    return {
        "view_conflict": row["view_conflict"],
        "for_processing": {"FOR PROCESSING": True, "FOR PRESENTATION": False}.get(intent),
        "burned_in_annotation": row["burned_in_annotation"],
        "lossy": row["lossy"],
    }
