"""What every estimate demands of its arrays.

Knows no method. A fault here is a fault of the calling code, so it is a ValueError and not an error of the user's.
"""

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.int64]


def floats(name: str, values: npt.ArrayLike) -> Floats:
    """Return values as a finite float64 vector.

    Args:
        name: Name of the argument, for the message.
        values: Anything numpy turns into numbers, shape (n,).

    Returns:
        float64 array, shape (n,).

    Raises:
        ValueError: If values is not one-dimensional or holds a missing or infinite number.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, but has {array.ndim}")
    n_bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if n_bad:
        raise ValueError(f"{name} must be finite, but {n_bad:,} of {array.size:,} values are not")
    return array


def booleans(name: str, values: npt.ArrayLike) -> Booleans:
    """Return values as a bool vector; numbers must be 0 or 1 and none may be missing.

    Args:
        name: Name of the argument, for the message.
        values: bool, 0 or 1, shape (n,).

    Returns:
        bool array, shape (n,).

    Raises:
        ValueError: If a value is neither 0 nor 1.
    """
    array = np.asarray(values)
    if array.dtype == np.bool_ and array.ndim == 1:
        return array
    numbers = floats(name, array)
    if not np.isin(numbers, (0.0, 1.0)).all():
        raise ValueError(f"{name} must be True or False, but other values were found")
    return numbers.astype(np.bool_)


def codes(name: str, values: npt.ArrayLike, n_levels: int) -> Integers:
    """Return values as integers 0 <= code < n_levels.

    Args:
        name: Name of the argument, for the message.
        values: Whole numbers, shape (n,).
        n_levels: Number of levels.

    Returns:
        int64 array, shape (n,).

    Raises:
        ValueError: If a value is not a whole number of that range.
    """
    numbers = floats(name, values)
    result = numbers.astype(np.int64)
    if (result != numbers).any() or (result < 0).any() or (result >= n_levels).any():
        raise ValueError(f"{name} must be whole numbers from 0 to {n_levels - 1}, but other values were found")
    return result


def strata_codes(values: npt.ArrayLike | None, n: int) -> Integers:
    """Return strata as codes 0, 1, ... in sorted order; one stratum when there are none.

    Args:
        values: Any sortable labels, shape (n,), or None.
        n: Number of rows.

    Returns:
        int64 array, shape (n,).

    Raises:
        ValueError: If values has another length.
    """
    if values is None:
        return np.zeros(n, dtype=np.int64)
    labels = np.asarray(values)
    equal_lengths(strata=labels, rows=np.empty(n))
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def equal_lengths(**arrays: npt.NDArray[np.generic]) -> None:
    """Check that all arrays have the same number of rows.

    Args:
        **arrays: Arrays by argument name, first axis rows.

    Raises:
        ValueError: If they differ.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"arrays must have one length, but have {lengths}")


def survival(time: npt.ArrayLike, event: npt.ArrayLike) -> tuple[Floats, Booleans]:
    """Return times and events of equal length, times finite and not negative.

    Args:
        time: Follow-up time, any unit, >= 0, shape (n,).
        event: True where follow-up ends with the event, False where it is censored, shape (n,).

    Returns:
        float64 times and bool events.

    Raises:
        ValueError: If lengths differ or a time is negative.
    """
    times, events = floats("time", time), booleans("event", event)
    equal_lengths(time=times, event=events)
    if (times < 0).any():
        raise ValueError(f"time must be >= 0, but {np.count_nonzero(times < 0):,} values are negative")
    return times, events


def normal_quantile(level: float) -> float:
    """Return z such that a standard normal lies within (-z, z) with probability level.

    Args:
        level: Confidence level, 0 < level < 1.

    Returns:
        The quantile, 1.959964 at 0.95.

    Raises:
        ValueError: If level is outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, but was {level}")
    return float(ndtri(0.5 + level / 2))
