"""One index row -> one normalised square image, or a reason. Knows no network and no table.

Stored values are shifted to the top of 16 bits, so that bits above bits_stored fall off, made unsigned, and inverted
where the header says that low values are white; only then resized (area averages of integers), so that a MONOCHROME1
film and its MONOCHROME2 twin are equal to the last bit. Windows and VOI LUTs are not applied: percentiles of the
resized film take their place.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import polars as pl
from numpy.typing import NDArray

from cohort_scorer.imaging import codecs
from cohort_scorer.imaging.files import path_of
from cohort_scorer.imaging.refusal import Refused

Image16 = NDArray[np.uint16]


@dataclass(frozen=True)
class Preprocessing:
    """Everything but the size that decides a pixel's value.

    Attributes:
        version: Raised when the code changes a value that no other parameter tells.
        lower_percentile: Percentile of the film (padding apart) that becomes 0.
        upper_percentile: Percentile that becomes 65535.
        shrink: Interpolation towards fewer pixels: averages over areas of stored integers.
        enlarge: Interpolation towards more pixels.
        shape: Whole film centred in a square.
        padding: Value around the film: black, as air beside the patient.
        luminance: How coloured pictures become grey.
    """

    version: int = 1
    lower_percentile: float = 1.0
    upper_percentile: float = 99.0
    shrink: str = "area"
    enlarge: str = "linear"
    shape: str = "letterbox"
    padding: int = 0
    luminance: str = "itu-r 601"

    def identifier(self, size: int) -> str:
        """Return the preprocessing_id for images of `size` pixels: 16 hexadecimal digits over every parameter."""
        text = json.dumps(asdict(self) | {"size": size}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


PREPROCESSING: Final = Preprocessing()

_FULL_RANGE: Final = 2**16 - 1
_ROWS_HASHED = 128
_BORDER = 0.05  # of each side
_CENTRE = 0.25  # from each side


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
        resize_seconds: Time from the pixels to the image.
        read_seconds: Time from the file to the stored bytes; 0 where somebody else read them.
    """

    image: Image16
    pixel_sha256: str
    quality: Mapping[str, float]
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


def fetch(row: Mapping[str, Any], root: Path) -> NDArray[np.uint8]:
    """Read all that an image is made from; opens the file, decodes nothing.

    Raises:
        Refused: as `codecs.read_value`, or outside_root.
    """
    return codecs.read_value(row, path_of(root, row["uri"]))


def develop(row: Mapping[str, Any], value: NDArray[np.uint8], size: int) -> Radiograph:
    """Make the image of one film from what `fetch` read; opens no file.

    Raises:
        Refused: truncated, decode_failed, shape_mismatch or no_contrast.
    """
    started = time.perf_counter()
    stored = codecs.decode(row, value)
    decoded = time.perf_counter()
    film = _displayed_values(row, stored)
    small = _resized(film, size)
    normalised = _normalised(small)
    image = np.full((size, size), PREPROCESSING.padding, np.uint16)
    top, left = (size - small.shape[0]) // 2, (size - small.shape[1]) // 2
    image[top : top + small.shape[0], left : left + small.shape[1]] = normalised
    quality, sha256 = _quality(film, small, normalised), _pixel_sha256(film)
    return Radiograph(image, sha256, quality, decoded - started, time.perf_counter() - decoded)


def read_many(
    rows: pl.DataFrame, roots: Mapping[str, Path], size: int, workers: int, ahead: int = 0
) -> Iterator[tuple[int, Radiograph | Refused]]:
    """Read films in parallel threads, in row order.

    Args:
        rows: Eligible rows of the index.
        roots: Folder by the name in the column `root`.
        size: Side of the images in pixels.
        workers: Threads. Decoders release the interpreter's lock.
        ahead: Films that may be decoded before the caller takes them, at least 2 per worker: the bound on memory.

    Yields:
        Row number and what became of the row.
    """
    cv2.setNumThreads(1)  # the films are the parallel dimension
    pending: deque[tuple[int, Future[Radiograph | Refused]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for number, row in enumerate(rows.iter_rows(named=True)):
                pending.append((number, pool.submit(_outcome, row, roots, size)))
                if len(pending) >= max(ahead, 2 * workers):
                    number, future = pending.popleft()
                    yield number, future.result()
            while pending:
                number, future = pending.popleft()
                yield number, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _outcome(row: Mapping[str, Any], roots: Mapping[str, Path], size: int) -> Radiograph | Refused:
    try:
        return read(row, roots[row["root"]], size)
    except Refused as refused:
        return refused.with_traceback(None)


def fingerprint(row: Mapping[str, Any], value: NDArray[np.uint8]) -> str:
    """Hash all that a film shows: hex SHA-256 of Rows, Columns and its displayed values.

    Args:
        row: A decodable row of the index.
        value: What `fetch` read.

    Raises:
        Refused: as `codecs.decode`.
    """
    film = _displayed_values(row, codecs.decode(row, value))
    return hashlib.sha256(f"{film.shape}".encode() + film.tobytes()).hexdigest()


def displayed(row: Mapping[str, Any], root: Path) -> Image16:
    """Decode one film to values at the top of 16 bits, unsigned, white high (PS3.3 C.7.6.3.1.2, C.11.6.1).

    Args:
        row: A decodable row of the index.
        root: The folder that row["uri"] is relative to.

    Returns:
        uint16 of shape (rows, columns).

    Raises:
        Refused: as `fetch` and `codecs.decode`.
    """
    return _displayed_values(row, codecs.decode(row, fetch(row, root)))


def _displayed_values(row: Mapping[str, Any], stored: codecs.Pixels) -> Image16:
    bits, high_bit = int(row["bits_stored"]), int(row["high_bit"])
    film: Image16 = stored if stored.dtype == np.uint16 else stored.astype(np.uint16)  # type: ignore[assignment]
    if not film.flags.writeable:
        film = film.copy()
    if high_bit != bits - 1 and not row["encapsulated"]:
        film >>= np.uint16(max(high_bit + 1 - bits, 0))  # PS3.5 8.1.1: low bits that hold no pixel
    film <<= np.uint16(16 - bits)
    low_is_white = row["photometric_interpretation"] == "MONOCHROME1" or row["presentation_lut_shape"] == "INVERSE"
    if (row["rescale_slope"] or 1.0) < 0:
        low_is_white = not low_is_white
    flip = (1 << 15 if row["pixel_representation"] == 1 else 0) ^ (
        (_FULL_RANGE << (16 - bits)) & _FULL_RANGE if low_is_white else 0
    )
    if flip:
        film ^= np.uint16(flip)
    return film


def _resized(film: Image16, size: int) -> Image16:
    rows, columns = film.shape
    longest = max(rows, columns)
    target = [max(1, (2 * length * size + longest) // (2 * longest)) for length in (columns, rows)]
    interpolation = cv2.INTER_AREA if longest >= size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(film, target, interpolation=interpolation), dtype=np.uint16)


def _normalised(small: Image16) -> Image16:
    """Stretch the percentiles to the full range.

    Percentiles are values of the film: the smallest with at least that share of pixels at or below it.
    """
    reached = np.cumsum(np.bincount(small.ravel(), minlength=_FULL_RANGE + 1))
    shares = np.array((PREPROCESSING.lower_percentile, PREPROCESSING.upper_percentile)) / 100 * small.size
    low, high = np.searchsorted(reached, shares).tolist()
    if high <= low:
        raise Refused("no_contrast", "the percentiles of the film are one value")
    values = np.arange(_FULL_RANGE + 1, dtype=np.int64).clip(low, high) - low
    stretched = ((values * _FULL_RANGE + (high - low) // 2) // (high - low)).astype(np.uint16)
    return np.asarray(stretched[small], dtype=np.uint16)


def _pixel_sha256(film: Image16) -> str:
    rows, columns = film.shape
    step = max(1, rows // _ROWS_HASHED)
    digest = hashlib.sha256(f"{rows} x {columns}".encode())
    digest.update(np.ascontiguousarray(film[::step]).data)
    return digest.hexdigest()


def _quality(film: Image16, small: Image16, normalised: Image16) -> dict[str, float]:
    extremes = np.count_nonzero((small == small.min()) | (small == small.max()))
    rows, columns = small.shape
    inner = normalised[round(rows * _BORDER) : rows - round(rows * _BORDER)]
    inner = inner[:, round(columns * _BORDER) : columns - round(columns * _BORDER)]
    centre = normalised[int(rows * _CENTRE) : rows - int(rows * _CENTRE)]
    centre = centre[:, int(columns * _CENTRE) : columns - int(columns * _CENTRE)]
    total, inside = int(normalised.sum(dtype=np.int64)), int(inner.sum(dtype=np.int64))
    border_mean = (total - inside) / max(normalised.size - inner.size, 1)
    return {
        "clipped_percent": 100.0 * float(extremes) / small.size,
        "aspect": film.shape[1] / film.shape[0],
        "border_centre": (border_mean - float(centre.mean(dtype=np.float64))) / _FULL_RANGE,
    }
