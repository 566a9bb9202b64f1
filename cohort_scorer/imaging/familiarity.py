"""How far a film lies from the films that a network was trained on, in that network's own features.

A distance on features tells that a film is unlike the training films: a hand, a dog, another view, a new detector. It
does not tell why, nor that the score is wrong; and what the network has learnt to ignore it does not see.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from cohort_scorer.errors import BundleError

_MOST_COMPONENTS = 64
_FILMS_PER_COMPONENT = 5  # fewer would make the smallest variances a matter of chance
_NAMES = ("mean", "components", "variances", "rest_variance", "reference")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Familiarity:
    """The training films as one network sees them: a normal distribution with few components and an even rest.

    The squared Mahalanobis distance under probabilistic PCA (Tipping and Bishop, J R Stat Soc B 1999;61:611-622).

    Attributes:
        mean: (d,) of the features.
        components: (d, k), orthonormal, of the largest variances.
        variances: (k,) along the components.
        rest_variance: (1,), mean variance of each other direction.
        reference: (m,), ascending: distances of films of training patients that the network had not seen.
    """

    mean: Floats
    components: Floats
    variances: Floats
    rest_variance: Floats
    reference: Floats

    def distance(self, features: NDArray[np.float32]) -> float:
        """Distance of one film, in units of the median distance of the reference films.

        Args:
            features: (d,) of the film.
        """
        return float(self._raw(features) / np.median(self.reference))

    def percent(self, distance: float) -> float:
        """How many of the reference films lie nearer, 0 to 100."""
        raw = distance * np.median(self.reference)
        return 100.0 * float(np.searchsorted(self.reference, raw)) / len(self.reference)

    def _raw(self, features: NDArray[np.float32]) -> float:
        centred = features.astype(np.float64) - self.mean
        along = centred @ self.components
        rest = max(float(centred @ centred - along @ along), 0.0)
        return float(np.sqrt(np.sum(along**2 / self.variances) + rest / self.rest_variance[0]))

    def save(self, path: Path) -> None:
        """Write the distribution as safetensors."""
        safetensors.numpy.save_file({name: getattr(self, name) for name in _NAMES}, path)


def fit(seen: NDArray[np.float32], unseen: NDArray[np.float32]) -> Familiarity:
    """Describe what a network was trained on.

    Args:
        seen: (n, d), features of the films that it was trained on.
        unseen: (m, d), features of films of the same kind that it was not trained on.
    """
    mean = seen.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(np.cov(seen.astype(np.float64), rowvar=False))
    n_components = max(1, min(_MOST_COMPONENTS, len(seen) // _FILMS_PER_COMPONENT, len(values) - 1))
    floor = max(float(values[-1]) * 1e-6, np.finfo(np.float64).tiny)  # a feature that never changes
    found = Familiarity(
        mean,
        np.ascontiguousarray(vectors[:, -n_components:]),
        np.maximum(values[-n_components:], floor),
        np.maximum(values[:-n_components].mean(keepdims=True), floor),
        np.ones(1),
    )
    reference = np.sort([found._raw(film) for film in unseen])
    return Familiarity(found.mean, found.components, found.variances, found.rest_variance, reference)


def load(path: Path) -> Familiarity:
    """Read a distribution that `save` wrote.

    Raises:
        BundleError: it is none.
    """
    try:
        held = safetensors.numpy.load_file(path)
        return Familiarity(*(held[name] for name in _NAMES))
    except (OSError, KeyError, safetensors.SafetensorError) as fault:
        raise BundleError(
            "The bundle's description of its training films cannot be read.",
            f"Expected {path.name} with {', '.join(_NAMES)}; found something else.",
            "Get the bundle again from where it was made, or train it again.",
        ) from fault
