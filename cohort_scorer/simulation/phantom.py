"""Phantoms: pictures that a person takes for chest radiographs and that show a known amount of vascular ageing.

Numbers in, grey levels out: knows no file, no patient identifier and no calcium score. A picture is a sum of soft-edged
shapes on a grid with x from -1 to 1 (image left to right; the patient's left is on the right) and y from 0 to 1 (top to
bottom), in arbitrary units of X-ray attenuation.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Picture: TypeAlias = NDArray[np.floating[Any]]  # float32 throughout: half the time of float64


@dataclass(frozen=True)
class Anatomy:
    """What does not change between the films of one person.

    Attributes:
        male: Sex; women have breast shadows and a smaller chest.
        body: Body habitus in standard deviations.
        heart_width: Transverse heart diameter as a share of the thorax (the cardiothoracic ratio).
        knob_radius: Radius of the aortic knob, in units of x.
        arc: Strength of the calcified arc on the knob, 0 or more.
        unfolding: Tortuosity of the descending aorta, in units of x.
        device: Whether a pacemaker lies below the left clavicle.
        wires: Whether sternal wires tell of bypass surgery.
    """

    male: bool
    body: float
    heart_width: float
    knob_radius: float
    arc: float
    unfolding: float
    device: bool
    wires: bool


@dataclass(frozen=True)
class Grid:
    """Coordinates of the pixels, after the shift, tilt and zoom of one exposure.

    Attributes:
        x: Shape (rows, columns), about -1 to 1.
        y: Shape (rows, columns), about 0 to 1.
    """

    x: Picture
    y: Picture

    def ellipse(
        self, centre: tuple[float, float], radii: tuple[float, float], soft: float, tilt: float = 0.0
    ) -> Picture:
        """An ellipse of height 1 with an edge of relative width `soft`; `tilt` in radians."""
        dx, dy = self.x - centre[0], (self.y - (centre[1])) * 2
        along, across = dx * math.cos(tilt) + dy * math.sin(tilt), dy
        if tilt:
            across = dy * math.cos(tilt) - dx * math.sin(tilt)
        distance = np.sqrt((along / radii[0]) ** 2 + (across / (2 * radii[1])) ** 2)
        return step((1 - distance) / soft)

    def cloud(self, cells: int, rng: np.random.Generator) -> Picture:
        """Smooth standard noise with about `cells` bumps a side."""
        rows, columns = self.x.shape
        coarse = rng.standard_normal((cells + 1, cells + 1), dtype=np.float32)
        return _refine(_refine(coarse, rows).T, columns).T


def draw_anatomy(
    *, age_years: float, male: bool, body: float, vascular: float, device: bool, wires: bool, rng: np.random.Generator
) -> Anatomy:
    """Draws how a person looks inside.

    Args:
        age_years: Age.
        male: Sex.
        body: Body habitus in standard deviations.
        vascular: Vascular ageing in standard deviations.
        device: Whether the person has a pacemaker.
        wires: Whether the person had bypass surgery.
        rng: Source of what neither age, body nor vessels explain.

    Returns:
        The anatomy.
    """
    ageing = 0.25 * (age_years - 59) / 10 + 0.90 * vascular
    own = rng.standard_normal(4)
    return Anatomy(
        male=male,
        body=float(body),
        heart_width=float(np.clip(0.47 + 0.035 * ageing + 0.015 * body + 0.015 * own[0], 0.33, 0.66)),
        knob_radius=float(np.clip(0.105 + 0.022 * ageing + 0.010 * own[1], 0.055, 0.19)),
        arc=float(np.clip(0.10 + 0.16 * ageing + 0.10 * own[2], 0.0, 0.6)),
        unfolding=float(np.clip(0.06 + 0.03 * ageing + 0.02 * own[3], 0.0, 0.2)),
        device=device,
        wires=wires,
    )


def frontal(anatomy: Anatomy, shape: tuple[int, int], rng: np.random.Generator, *, supine: bool = False) -> Picture:
    """Draws a frontal chest film.

    Args:
        anatomy: The person.
        shape: Rows and columns.
        rng: Source of positioning, exposure, lung markings and noise.
        supine: An AP film: the heart is magnified and the diaphragm stands higher.

    Returns:
        Grey levels from 0 (black: air) to 1 (white: bone), float32.
    """
    grid = _position(shape, rng)
    breath = float(rng.normal(0, 0.02)) - (0.04 if supine else 0.0)
    thorax = 0.78 + 0.03 * anatomy.male
    floor = 0.80 + breath
    lungs = _lungs(grid, thorax, floor)
    torso = _torso(grid, anatomy)

    attenuation = (1.15 + 0.05 * anatomy.body) * torso
    attenuation += 0.25 * _below_diaphragm(grid, floor) * torso
    attenuation -= (0.78 + 0.04 * grid.cloud(6, rng)) * lungs
    attenuation += _vessels(grid, lungs, rng)
    attenuation += _bones(grid, thorax, torso, lungs, rng)
    attenuation += _heart_and_aorta(grid, anatomy, thorax, floor, magnified=1.08 if supine else 1.0)
    attenuation += _soft_tissue(grid, anatomy, floor)
    attenuation += _hardware(grid, anatomy)
    return _expose(attenuation, rng)


def lateral(anatomy: Anatomy, shape: tuple[int, int], rng: np.random.Generator) -> Picture:
    """Draws a lateral chest film: spine behind (right), sternum before (left). Arguments as for `frontal`."""
    grid = _position(shape, rng)
    torso = grid.ellipse((0.0, 0.62), (0.86, 0.75), 0.08)
    floor = 0.80 - 0.10 * grid.x**2 + 0.06 * grid.x
    lungs = grid.ellipse((-0.02, 0.50), (0.66, 0.44), 0.10) * step((floor - grid.y) / 0.012)
    spine = step((0.13 - np.abs(grid.x - 0.52 + 0.25 * (grid.y - 0.5) ** 2)) / 0.03)
    vertebrae = 0.75 + 0.25 * np.cos(2 * np.pi * 13 * grid.y)
    attenuation = 1.25 * torso - 0.80 * lungs + 0.35 * spine * vertebrae * torso
    attenuation += anatomy.heart_width * grid.ellipse((-0.20, 0.66), (0.36, 0.15), 0.2, tilt=-0.6) * lungs
    attenuation += 0.25 * grid.ellipse((0.10, 0.33), (0.13 + anatomy.knob_radius, 0.12), 0.3) * lungs
    attenuation += 0.20 * step((0.03 - np.abs(grid.x + 0.62 - 0.3 * (grid.y - 0.45) ** 2)) / 0.02) * torso
    attenuation += _vessels(grid, lungs, rng)
    ribs = _stripes(22 * grid.y - 5 * grid.x, 4)
    attenuation += 0.08 * ribs * lungs
    return _expose(attenuation, rng)


def hand(shape: tuple[int, int], rng: np.random.Generator) -> Picture:
    """Draws a hand: not a chest. Returns grey levels as `frontal` does."""
    grid = _position(shape, rng)
    attenuation = 0.5 * grid.ellipse((0.0, 0.74), (0.38, 0.19), 0.1)
    for finger, (root, tilt) in enumerate(zip(np.linspace(-0.32, 0.32, 5), np.linspace(-0.5, 0.4, 5), strict=True)):
        length = 0.16 if finger == 0 else 0.26
        centre = (float(root + tilt * 0.5), 0.58 if finger == 0 else 0.42)
        upright = np.pi / 2 + tilt * 0.5
        attenuation += 0.45 * grid.ellipse(centre, (2 * length, 0.045), 0.2, tilt=upright)
        attenuation += 0.50 * grid.ellipse(centre, (1.8 * length, 0.020), 0.3, tilt=upright)
    return _expose(attenuation, rng)


def axial(shape: tuple[int, int], rng: np.random.Generator) -> Picture:
    """Draws a CT slice of the chest: not a radiograph. Returns grey levels as `frontal` does."""
    grid = _position(shape, rng)
    attenuation = 0.9 * grid.ellipse((0.0, 0.5), (0.85, 0.32), 0.03)
    for side in (-1, 1):
        attenuation -= 0.75 * grid.ellipse((side * 0.42, 0.5), (0.30, 0.22), 0.05)
    attenuation += 0.3 * grid.ellipse((0.0, 0.72), (0.12, 0.06), 0.1)
    return _expose(attenuation, rng)


def step(x: Picture) -> Picture:
    """A soft step from 0 to 1: half of 1 + x/sqrt(1 + x^2), cheaper than a logistic function and as smooth."""
    return 0.5 + 0.5 * x / np.sqrt(1 + x * x)


def _position(shape: tuple[int, int], rng: np.random.Generator) -> Grid:
    """Places the person before the detector: a few degrees of tilt, a shift and a zoom."""
    rows, columns = shape
    tilt, zoom = float(rng.normal(0, 0.02)), float(rng.normal(1.0, 0.025))
    x = (np.linspace(-1, 1, columns, dtype=np.float32)[None, :] - float(rng.normal(0, 0.03))) * zoom
    y = (np.linspace(0, 1, rows, dtype=np.float32)[:, None] - float(rng.normal(0, 0.012))) * zoom
    return Grid(x=x + (2 * tilt) * (y - 0.5), y=y - (tilt / 2) * x)


def _torso(grid: Grid, anatomy: Anatomy) -> Picture:
    """Neck, shoulders and chest wall."""
    half = 0.86 + 0.035 * anatomy.body + 0.02 * anatomy.male + 0.10 * (grid.y - 0.9) ** 2
    chest = step((half - np.abs(grid.x)) / 0.03) * step((grid.y - 0.10 - 0.10 * grid.x**2) / 0.015)
    neck = step((0.20 - np.abs(grid.x)) / 0.05) * step((0.25 - grid.y) / 0.05)
    return np.maximum(chest, neck)


def _lungs(grid: Grid, thorax: float, floor: float) -> Picture:
    """Both lungs, 0 to 1, with domes of the diaphragm below."""
    both = np.zeros_like(grid.x)
    for side in (-1, 1):
        lean = grid.x - side * (0.16 + 0.315 * thorax * step((grid.y - 0.18) / 0.35))
        width = thorax * 0.43 * np.sqrt(np.clip(1 - ((grid.y - 0.62) / 0.52) ** 2, 0.01, None))
        dome = floor + (0.02 if side > 0 else 0.0) + 0.55 * (grid.x - (side * 0.36)) ** 2
        lung = step((width - np.abs(lean)) / 0.025) * step((dome - grid.y) / 0.008)
        both += lung * step((grid.y - 0.115) / 0.01)
    return both


def _below_diaphragm(grid: Grid, floor: float) -> Picture:
    """Liver and abdomen, with the stomach's bubble of air."""
    abdomen = step((grid.y - (floor + 0.03)) / 0.03)
    bubble = grid.ellipse((0.38, floor + 0.10), (0.13, 0.035), 0.4)
    return abdomen - 0.9 * bubble


def _vessels(grid: Grid, lungs: Picture, rng: np.random.Generator) -> Picture:
    """Hila and lung markings, denser towards the hila."""
    markings = np.zeros_like(grid.x)
    for side in (-1, 1):
        hilum = grid.ellipse((side * 0.20, 0.47 + 0.01 * side), (0.09, 0.085), 0.9)
        distance = np.hypot(grid.x - (side * 0.2), 2 * (grid.y - 0.47))
        markings += 0.22 * hilum + 0.10 * np.abs(grid.cloud(42, rng)) * np.exp(-2.2 * distance)
    return markings * lungs


def _bones(grid: Grid, thorax: float, torso: Picture, lungs: Picture, rng: np.random.Generator) -> Picture:
    """Ribs behind and before, clavicles and spine."""
    far = np.abs(grid.x)
    phase = float(rng.uniform(0, 1))
    behind = _stripes(11.5 * (grid.y - 0.22 * far * np.sqrt(far)) + phase, 3)
    before = _stripes(9.5 * (grid.y + 0.30 * far) + phase, 5) * step((far - 0.35) / 0.1)
    cage = step((thorax + 0.10 - far) / 0.04) * step((0.92 - grid.y) / 0.05)
    ribs = (0.17 * behind + 0.10 * before) * cage * torso * (0.4 + 0.6 * lungs)
    clavicles = step((0.016 - np.abs(grid.y - 0.185 + 0.07 * far)) / 0.008) * step((0.72 - far) / 0.05)
    clavicles *= step((far - 0.10) / 0.03)
    vertebrae = 0.7 + 0.3 * np.cos(2 * np.pi * 17 * grid.y) ** 2
    spine = step((0.085 - far) / 0.02) * vertebrae
    bones: Picture = ribs + 0.22 * clavicles + 0.13 * spine * torso
    return bones


def _heart_and_aorta(grid: Grid, anatomy: Anatomy, thorax: float, floor: float, *, magnified: float) -> Picture:
    """Mediastinum, heart, aortic knob with its calcified arc, descending aorta."""
    half = anatomy.heart_width * magnified * thorax
    middle = 0.105 + 0.03 * step((grid.y - 0.45) / 0.1) + 0.03 * step((0.22 - grid.y) / 0.05)
    mediastinum = step((middle - np.abs(grid.x)) / 0.03)
    # A third of the heart lies right of the midline, two thirds left of it, with the apex low.
    heart = grid.ellipse((0.34 * half, floor - 0.10), (0.98 * half, 0.125), 0.12, tilt=0.42)
    right = grid.ellipse((-0.22 * half, floor - 0.125), (0.42 * half, 0.13), 0.15)
    radius = anatomy.knob_radius
    centre = (0.09 + 0.55 * radius, 0.345)
    knob = grid.ellipse(centre, (radius, 0.55 * radius), 0.25)
    tube = 0.14 + anatomy.unfolding * np.sin(np.pi * np.clip((grid.y - 0.33) / 0.5, 0, 1))
    aorta = step((tube - grid.x) / 0.02) * step((grid.x - 0.02) / 0.02) * step((grid.y - 0.33) / 0.03)
    shadow = np.maximum.reduce([0.66 * mediastinum, 0.72 * heart, 0.70 * right, 0.62 * knob, 0.52 * aorta])
    shadow = shadow * step((floor + 0.08 - grid.y) / 0.03)
    outer = grid.ellipse(centre, (1.06 * radius, 0.58 * radius), 0.12)
    inner = grid.ellipse(centre, (0.84 * radius, 0.46 * radius), 0.12)
    arc: Picture = 1.6 * anatomy.arc * (outer - inner) * step((grid.x - centre[0]) / 0.03)
    return np.add(shadow, arc)


def _soft_tissue(grid: Grid, anatomy: Anatomy, floor: float) -> Picture:
    """Breast shadows, and the bulk of the chest wall in heavy people."""
    tissue = np.zeros_like(grid.x)
    for side in (-1, 1):
        if not anatomy.male:
            tissue += (0.28 + 0.04 * anatomy.body) * grid.ellipse((side * 0.50, floor - 0.10), (0.34, 0.14), 0.35)
        tissue += 0.05 * max(anatomy.body, 0) * step((side * grid.x - 0.75) / 0.08)
    return tissue


def _hardware(grid: Grid, anatomy: Anatomy) -> Picture:
    """A pacemaker with its lead, and sternal wires."""
    metal = np.zeros_like(grid.x)
    if anatomy.device:
        metal += 1.2 * grid.ellipse((0.55, 0.25), (0.13, 0.05), 0.08)
        lead = np.abs(grid.x - (0.55 - 0.9 * np.sqrt(np.clip(grid.y - 0.25, 0, 1))))
        metal += 0.6 * step((0.008 - lead) / 0.004) * step((grid.y - 0.25) / 0.01) * (grid.y < 0.68)
    if anatomy.wires:
        for y in np.linspace(0.28, 0.62, 6):
            metal += 0.8 * grid.ellipse((0.0, float(y)), (0.035, 0.006), 0.4)
    return metal


def _expose(attenuation: Picture, rng: np.random.Generator) -> Picture:
    """Turns attenuation into grey levels: exposure, film curve, scatter and quantum noise."""
    gain, offset = float(rng.normal(1.0, 0.06)), float(rng.normal(0.0, 0.03))
    grey = step((gain * attenuation + (offset - 0.85)) * 1.3)
    grey += float(rng.uniform(0.008, 0.02)) * rng.standard_normal(grey.shape, dtype=np.float32)
    return np.minimum(np.maximum(grey, 0), 1)


def _stripes(phase: Picture, sharpness: int) -> Picture:
    """Bright stripes of height 1 at whole phases, narrower the sharper: cos(pi phase) to the power 2 * sharpness."""
    square: Picture = np.square(np.cos(np.pi * phase))
    stripes = square
    for _ in range(sharpness - 1):  # far cheaper than a power of float32
        stripes = stripes * square
    return stripes


def _refine(coarse: Picture, points: int) -> Picture:
    """Interpolates linearly along the first axis."""
    # Element by element: the bits of a matrix product depend on the machine, and its threads meet those of the caller.
    at = np.linspace(0, len(coarse) - 1, points, dtype=np.float32)[:, None]
    before = np.minimum(at.astype(np.intp), len(coarse) - 2)
    share = at - before.astype(np.float32)
    fine: Picture = coarse[before[:, 0]] * (1 - share) + coarse[before[:, 0] + 1] * share
    return fine
