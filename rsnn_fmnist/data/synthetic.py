"""A synthetic substitute for FashionMNIST: ten kinds of garment, drawn as silhouettes from a seed.

For machines without the pictures, and for tests. An accuracy on these pictures says nothing about
the real set. They share its format, the order of the classes, roughly the mean and standard
deviation of the pixels, the pose (shoulders at the top, toes to the left), and similar classes: a
shirt can look like a T-shirt, a coat like a pullover, a high sneaker like an ankle boot.

Left out: files, splits, torch and the reading by columns, which other files of this folder do.

Axes: R rows (28, downwards), C columns (28, rightwards), n pictures. Pictures come *last* while
drawing, so that a parameter which differs from picture to picture is a plain [n] array that
broadcasts against the grid [R, C, n], and numpy's inner loops are long. Lengths are in pixels from
the center of the picture, which reaches from -14 to 14 both ways. A shape is a signed distance,
negative inside and nearly true close to the edge: union is minimum, intersection is maximum,
removal is intersection with the negative.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]  # float32 all through: numpy.typing loses the width beside a float
Value = Array | float
Vary = Callable[[float, float], Array]  # vary(low, high): a uniform number for each picture, [n]

SIDE = 28  # pixels
CHUNK = 64  # pictures drawn at a time: an array [R, C, n], 0.2 MB, stays in the cache


class Sketch(NamedTuple):
    """A garment before it is painted, as two signed distances that broadcast to [R, C, n]."""

    outline: Array  # the silhouette
    seam: Array  # the darker parts on it: an opening, a sole, a flap


Garment = Callable[[Array, Array, Vary], Sketch]  # x, y on the grid, in pixels; y downwards


def draw(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw `count` pictures in random order, the classes balanced to within one picture.

    Args:
        count: number of pictures, >= 0.
        seed: >= 0. Count and seed alone decide the result; a test set needs a seed of its own.
    Returns:
        pictures, uint8 [count, R, C], row 0 at the top, on black; labels, int64 [count].
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count, dtype=np.int64) % len(GARMENTS))
    pictures = np.empty((count, SIDE, SIDE), dtype=np.uint8)
    for label, garment in enumerate(GARMENTS):
        places = np.flatnonzero(labels == label)
        for start in range(0, len(places), CHUNK):
            chunk = places[start : start + CHUNK]
            pictures[chunk] = render(garment, len(chunk), rng).transpose(2, 0, 1)
    return pictures, labels


def render(garment: Garment, n: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw n pictures of one kind of garment: pose, sketch, paint. Returns uint8 [R, C, n]."""

    def vary(low: float, high: float) -> Array:
        return np.float32(low) + np.float32(high - low) * rng.random(n, dtype=np.float32)

    centerd = np.arange(SIDE, dtype=np.float32) - np.float32((SIDE - 1) / 2)
    y = (centerd[:, None, None] - vary(-1, 1)) * vary(0.92, 1.1)  # [R, 1, n]
    x = (centerd[None, :, None] - vary(-1, 1)) * vary(0.92, 1.15) + vary(-0.08, 0.08) * y
    outline, seam = garment(x, y, vary)
    cloth = fabric(x, y, vary) - vary(0, 0.25) * rng.random(x.shape, dtype=np.float32)
    cloth *= 1 - vary(0.2, 0.7) * cover(seam)
    shape = np.maximum(outline, -hidden(x, y, vary))
    return (cloth.clip(0, 1) * cover(shape, vary(1, 2)) * 255).astype(np.uint8)


def fabric(x: Array, y: Array, vary: Vary) -> Array:
    """Brightness of the cloth, about 0 to 1, [R, C, n]: its tone, stripes or folds, a print."""
    stripes = vary(-0.2, 0.25).clip(0) * np.sin(vary(-2, 2) * x + vary(-2, 2) * y + vary(0, 6.3))
    motif = vary(-0.5, 0.5) * cover(disc(x - vary(-6, 6), y - vary(-8, 8), vary(-4, 4)))
    return vary(0.45, 1.15) * (1 + stripes + motif)


def hidden(x: Array, y: Array, vary: Vary) -> Array:
    """A box in front of the garment, black as the background; two pictures in three have none."""
    width, height = vary(-6, 3), vary(1, 8)
    return box(x - vary(-9, 9), y - vary(-9, 9), width, height)


def cover(distance: Array, softness: Value = 1.0) -> Array:
    """Share of a pixel that a shape covers, 0 to 1: an edge `softness` pixels wide."""
    return (0.5 - distance / softness).clip(0, 1)


def ramp(position: Array, start: Value, end: Value) -> Array:
    """Rise smoothly from 0 at `start` to 1 at `end`."""
    u: Array = ((position - start) / (end - start)).clip(0, 1)
    return u * u * (3 - 2 * u)


def disc(x: Array, y: Array, radius: Value) -> Array:
    """A disc about the origin; none where the radius is negative."""
    return np.sqrt(x * x + y * y) - radius


def box(x: Array, y: Array, width: Value, height: Value) -> Array:
    """A box about the origin, by its half-width and half-height; none where one is negative."""
    return np.maximum(np.abs(x) - width, np.abs(y) - height)


def bar(x: Array, y: Array, angle: Array, length: Array, width: Value) -> Array:
    """A sleeve or strap from the origin, `angle` radians off straight down towards positive x.

    width: half of it; length: no bar where it is negative.
    """
    sine, cosine = np.sin(angle), np.cos(angle)
    return box(x * cosine - y * sine, x * sine + y * cosine - length / 2, width, length / 2)


def upper(
    x: Array, y: Array, half: Array, hem: Array, flare: Array, neck: Array, arm: Array, angle: Array
) -> Array:
    """What covers the chest: a body with sloping shoulders, two sleeves, a hole for the neck.

    half: half-width at the shoulders, `flare` wider at y = hem; neck: radius of the hole;
    arm, angle: length and slant of the sleeves, as in `bar`.
    """
    top, side = -13, np.abs(x)
    slope = top + 0.3 * side - y
    width = half + flare * (y - top) / (hem - top)
    body = np.maximum(side - width, y - hem)
    sleeves = bar(side - half + 2, y - top - 0.3 * half, angle, arm, 2.2)
    return np.maximum(np.maximum(np.minimum(body, sleeves), slope), -disc(x, y - top, neck))


def opening(x: Array, y: Array, end: Array, lapel: Array) -> Array:
    """Lapels that meet at y = `lapel`, and a line from there down to y = `end`."""
    line: Array = np.maximum(box(x, y - end, 0.4, end - lapel), y - end)
    lapels: Array = np.maximum(np.abs(lapel - y - 2 * np.abs(x)) / 2 - 0.4, y - lapel)
    return np.minimum(line, lapels)


def t_shirt(x: Array, y: Array, vary: Vary) -> Sketch:
    """Short sleeves at an angle, a straight body, no opening."""
    hem = vary(10, 13.5)
    neck, sleeve, angle = vary(2, 4.5), vary(3, 9), vary(0.4, 1.1)
    outline = upper(x, y, vary(6.5, 8.5), hem, vary(-1, 1), neck, sleeve, angle)
    return Sketch(outline, np.abs(y - hem + 1.5) - vary(-1, 0.4))


def trouser(x: Array, y: Array, vary: Vary) -> Sketch:
    """Two legs below a waistband, from wide apart to touching."""
    down, side = (y + 13) / 26, np.abs(x)
    legs = box(side - vary(-1, 3) * down, y, vary(3.5, 5.5), vary(12, 13.5))
    between = np.maximum(side - vary(-1, 2.5) * down - 0.2, vary(-9, -3) - y)
    return Sketch(np.maximum(legs, -between), np.abs(y + 10.5) - vary(-0.5, 0.6))


def pullover(x: Array, y: Array, vary: Vary) -> Sketch:
    """Long sleeves that hang, a small neck, a ribbed hem."""
    hem = vary(9, 13)
    neck, sleeve, angle = vary(1, 3.5), vary(15, 22), vary(0.08, 0.4)
    outline = upper(x, y, vary(6, 8), hem, vary(-1.5, 0.5), neck, sleeve, angle)
    return Sketch(outline, np.abs(y - hem + vary(1, 2.5)) - vary(-1, 0.5))


def dress(x: Array, y: Array, vary: Vary) -> Sketch:
    """A narrow body, flared below the waist, with sleeves of any length or none."""
    bust, waist = vary(3.5, 6), vary(-5, 2)
    bodice = upper(x, y, bust, waist, vary(-2, 0), vary(1.5, 4), vary(-8, 16), vary(0.1, 0.7))
    width = bust - 1 + vary(0, 7) * (y - waist) / (13 - waist)
    skirt = np.maximum(np.maximum(np.abs(x) - width, waist - 1 - y), y - vary(10.5, 13.5))
    return Sketch(np.minimum(bodice, skirt), np.abs(y - waist) - vary(-1, 0.6))


def coat(x: Array, y: Array, vary: Vary) -> Sketch:
    """Long sleeves and lapels, open down to a low hem."""
    hem = vary(11.5, 13.5)
    neck, sleeve, angle = vary(0.5, 3), vary(17, 23), vary(0.06, 0.32)
    outline = upper(x, y, vary(6, 8), hem, vary(-0.5, 2), neck, sleeve, angle)
    return Sketch(outline, opening(x, y, hem, vary(-10, -2)))


def sandal(x: Array, y: Array, vary: Vary) -> Sketch:
    """A thin sole, flat or on a heel, under straps with air between them."""
    ground, heel, thick = vary(6, 10), vary(0, 11), vary(0.6, 1.5)
    sole_y = ground - heel * ramp(x, vary(-7, -3), 9)
    sole = box(x, y - sole_y, 13, thick)
    block = box(x - 11, y - ground + heel / 2, vary(0.7, 3), heel / 2 + thick)
    rim = ground - heel - vary(5, 8)
    ankle = np.minimum(box(x - 8, y - rim, 4.5, thick), box(x - 12, y - rim - 5, thick, 5))
    toe = bar(x - vary(-8, -3), y - ground + vary(4, 8), vary(-0.9, 0.5), vary(6, 12), vary(0.6, 2))
    instep = bar(x - vary(1, 5), y - rim, vary(-1, 0), vary(8, 16), vary(0.6, 1.6))
    straps = np.maximum(np.minimum(np.minimum(toe, instep), ankle), y - sole_y)
    return Sketch(np.minimum(np.minimum(sole, block), straps), sole + 1)


def shirt(x: Array, y: Array, vary: Vary) -> Sketch:
    """Between T-shirt, pullover and coat: sleeves of any length, open some way down."""
    neck, sleeve, angle = vary(0.5, 4), vary(3, 22), vary(0.1, 0.7)
    outline = upper(x, y, vary(6, 8), vary(10, 13.5), vary(-1, 1.5), neck, sleeve, angle)
    return Sketch(outline, opening(x, y, vary(-6, 14), vary(-11, -7)))


def shoe(x: Array, y: Array, vary: Vary, height: Array, heel: Array, instep: Array) -> Sketch:
    """A closed shoe: from the toe it climbs, over `instep` pixels, to the rim of a shaft.

    height: of the rim over the ground; heel: how far the arch is off the ground.
    """
    ground, toe, front = height / 2 + vary(-1, 1.5), vary(4, 6), vary(-4, 1)
    climb = (height - toe) * ramp(x, front - instep / 2, front + instep / 2)
    dip = vary(0, 3) * ramp(x, 2, 7) * ramp(x, 13, 9)
    top = ground - toe * ramp(x, -15.5, -9) - climb + dip
    arch = ground - heel * ramp(x, -7, -2) * ramp(x, 8, 6)
    sides = np.abs(x + vary(-1, 1) * y / 14) - 13
    outline = np.maximum(np.maximum(top - y, y - arch), sides)
    return Sketch(outline, np.abs(y - ground + vary(1.5, 3.5)) - vary(-0.3, 0.7))


def sneaker(x: Array, y: Array, vary: Vary) -> Sketch:
    """A low shoe on a flat sole, now and then as high as a boot."""
    return shoe(x, y, vary, vary(9, 13) + vary(-8, 6).clip(0), vary(-1, 0.7).clip(0), vary(8, 16))


def bag(x: Array, y: Array, vary: Vary) -> Sketch:
    """A box, tapered either way, under a handle that may be too low to see."""
    top, bottom, half = vary(-7, 1), vary(8, 13), vary(8, 13.5)
    body = box(x * (1 + vary(-0.012, 0.012) * y), y - (top + bottom) / 2, half, (bottom - top) / 2)
    arc = disc(x / (half * vary(0.4, 0.9)), (y - top) / vary(1, 10), 1)
    handle = np.maximum(np.abs(arc) * 5 - vary(0.5, 1.5), y - top)
    return Sketch(np.minimum(body, handle), np.abs(y - top - vary(1, 7)) - vary(-0.6, 0.6))


def ankle_boot(x: Array, y: Array, vary: Vary) -> Sketch:
    """A shaft that rises steeply behind the foot, over a heel."""
    return shoe(x, y, vary, vary(13, 26), vary(-1, 3).clip(0), vary(4, 9))


GARMENTS: tuple[Garment, ...] = (  # index = label, as in pictures.CLASS_NAMES
    t_shirt,
    trouser,
    pullover,
    dress,
    coat,
    sandal,
    shirt,
    sneaker,
    bag,
    ankle_boot,
)
