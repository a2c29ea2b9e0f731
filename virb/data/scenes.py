"""A small rendered world: flat objects at different distances in front of a textured wall, all in slow motion.

A scene is drawn from (seed, purpose, number) in units of the image's width, so the same scene can be rendered at any size. What makes
its targets exact:

- Every object is a rigid shape with one depth; it owns the pixels whose centre it covers, and nearer objects own shared ones.
- Objects are numbered from the nearest (0) to the farthest. Radii (of the circumscribed circle) fall in the same order: apparent size
  tells distance, and the nearest object is also the one with the largest radius. Nothing ever hides it.
- In every frame of a scene, no nearer object comes within ``CORE`` radii of another's centre, and centres stay ``_MARGIN`` radii inside
  the image. All shapes contain the disc of that radius, so every object is visible in every frame, without rendering to find out.
- Objects and wall move by constant translations, camera drift with parallax included: the flow of a pixel is that of its owner.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from virb.functional.randomness import numpy_generator

VERSION = 1  # raised when the same seed gives other pixels
KINDS = ("circle", "square", "triangle", "star", "cross")
MAX_OBJECTS = 6
MIN_SIZE = 32  # below, the visible core of a small object could miss every pixel centre
CORE = 0.4

_MARGIN = 0.6
_RADII = (0.09, 0.23)  # of the image's width
_SMALLEST = 0.065
_PHYSICAL_RADIUS = 0.42  # metres, times the tangent of half the field of view: radius = _PHYSICAL_RADIUS / depth
_OWN_MOTION = 0.025  # image widths per frame, at most, in x and in y
_CAMERA_MOTION = 0.05  # the same, of something one metre away
_PACED_FRAMES = 8  # longer scenes move more slowly: objects must stay in the picture
_RIM = 1.2  # darker outline, pixels


@dataclass(frozen=True, eq=False)
class Wall:
    """The background: a colour gradient and a pattern of waves, on a slightly tilted plane."""

    colours: np.ndarray  # (2, 3) in 0..1
    gradient: float  # its direction, radians
    pattern: str  # "plain" | "stripes" | "checks"
    waves: tuple[float, float, float, float]  # direction, waves per image width, phase, strength
    depth: tuple[float, float, float]  # metres at the image's centre, and its slopes in metres per image width
    motion: np.ndarray  # (2,) x, y image widths per frame


@dataclass(frozen=True, eq=False)
class Scene:
    """M objects, nearest first, and the wall. Lengths in image widths, angles in radians, depths in metres, motions per frame."""

    kinds: np.ndarray  # (M,) int64, index in KINDS
    radii: np.ndarray  # (M,)
    centres: np.ndarray  # (M, 2) x, y in frame 0
    motions: np.ndarray  # (M, 2)
    depths: np.ndarray  # (M,) rising
    angles: np.ndarray  # (M,)
    colours: np.ndarray  # (M, 3) in 0..1
    stripes: np.ndarray  # (M, 3): waves per radius, phase, strength
    wall: Wall
    noise: float  # standard deviation of the sensor noise, in 0..1
    source: tuple[int, str, int]  # seed, purpose, number: the noise of a frame is drawn from it

    def __len__(self) -> int:
        return len(self.kinds)


def draw_kinds(seed: int, purpose: str, number: int) -> np.ndarray:
    """Kinds of the 1 to 6 objects of a scene, nearest first (int64, index in KINDS). A stream of its own, so that count and class are
    known without drawing the scene."""
    random = numpy_generator(seed, f"{purpose}/kinds", number)
    return random.integers(0, len(KINDS), size=int(random.integers(1, MAX_OBJECTS + 1)))


@lru_cache(maxsize=64)
def draw_scene(seed: int, purpose: str, number: int, n_frames: int = 1) -> Scene:
    """Scene ``number``; its objects stay visible over ``n_frames`` frames."""
    kinds = draw_kinds(seed, purpose, number)
    random = numpy_generator(seed, f"{purpose}/scene", number)
    n = len(kinds)
    pace = min(1.0, _PACED_FRAMES / n_frames)
    camera = pace * random.uniform(-_CAMERA_MOTION, _CAMERA_MOTION, 2)
    metres = random.uniform(0.85, 1.15) * _PHYSICAL_RADIUS
    radii, centres, motions = _layout(random, n, n_frames, camera, pace * _OWN_MOTION, metres)
    wall_depth = random.uniform(8.5, 11.5)
    hue = random.random()
    hues = [(hue + random.uniform(-0.1, 0.1)) % 1 for _ in range(2)]
    colours = [colorsys.hsv_to_rgb(h, random.uniform(0.1, 0.4), random.uniform(0.4, 0.85)) for h in hues]
    wall = Wall(
        colours=np.array(colours, dtype=np.float32),
        gradient=random.uniform(0, 2 * np.pi),
        pattern=("plain", "stripes", "checks")[random.integers(3)],
        waves=(random.uniform(0, np.pi), random.uniform(2, 7), random.uniform(0, 2 * np.pi), random.uniform(0.03, 0.09)),
        depth=(wall_depth, random.uniform(-1.5, 1.5), random.uniform(-1.5, 1.5)),
        motion=camera / wall_depth,
    )
    paints = [colorsys.hsv_to_rgb(random.random(), random.uniform(0.55, 0.95), random.uniform(0.65, 1.0)) for _ in range(n)]
    return Scene(
        kinds=kinds,
        radii=radii,
        centres=centres,
        motions=motions,
        depths=metres / radii,
        angles=random.uniform(0, 2 * np.pi, n),
        colours=np.array(paints, dtype=np.float32).reshape(n, 3),
        stripes=np.stack([random.uniform(1, 3, n), random.uniform(0, 2 * np.pi, n), random.choice([0.0, 0.0, 0.25], n)], axis=1),
        wall=wall,
        noise=random.uniform(0.008, 0.025),
        source=(seed, purpose, number),
    )


def render_image(scene: Scene, size: int, frame: int = 0) -> np.ndarray:
    """uint8 (size, size, 3): anti-aliased, shaded from the top left, with sensor noise that differs from frame to frame."""
    canvas = _render_wall(scene.wall, size, frame)
    for layer in _layers(scene, size, frame):
        k = layer.number
        waves, phase, strength = scene.stripes[k]
        light = 1.0 - 0.18 * (layer.dx + layer.dy) / np.float32(scene.radii[k] * size)
        if strength:
            light = light * (1.0 - np.float32(strength) * (np.sin(layer.u * np.float32(2 * np.pi * waves) + np.float32(phase)) > 0))
        light = light * (1.0 - 0.4 * np.clip(layer.distance + np.float32(_RIM + 0.5), 0, 1))
        cover = np.clip(0.5 - layer.distance, 0, 1)[..., None]
        patch = canvas[layer.window]
        patch += cover * (light[..., None] * scene.colours[k] - patch)
    seed, purpose, number = scene.source
    noise = numpy_generator(seed, f"{purpose}/noise", number, frame).standard_normal(canvas.shape, dtype=np.float32)
    canvas += noise * np.float32(scene.noise)
    return np.clip(np.rint(canvas * 255), 0, 255).astype(np.uint8)


def render_owners(scene: Scene, size: int, frame: int = 0) -> np.ndarray:
    """int64 (size, size): number of the object that owns each pixel, -1 for the wall."""
    owners = np.full((size, size), -1, dtype=np.int64)
    for layer in _layers(scene, size, frame):
        owners[layer.window][layer.distance < 0] = layer.number
    return owners


def render_mask(scene: Scene, size: int, frame: int = 0) -> np.ndarray:
    """int64 (size, size): 0 = wall, 1 + kind of the owner elsewhere."""
    return np.concatenate([scene.kinds + 1, [0]])[render_owners(scene, size, frame)]


def render_depth(scene: Scene, size: int, frame: int = 0) -> np.ndarray:
    """float32 (size, size): metres, finite everywhere."""
    owners = render_owners(scene, size, frame)
    middle, slope_x, slope_y = scene.wall.depth
    x, y = _wall_coordinates(scene.wall, size, frame)
    wall = np.float32(middle) + np.float32(slope_x) * (x - 0.5)[None, :] + np.float32(slope_y) * (y - 0.5)[:, None]
    return np.where(owners < 0, wall, scene.depths.astype(np.float32)[owners])


def render_flow(scene: Scene, size: int, frame: int = 0) -> np.ndarray:
    """float32 (2, size, size): x and y displacement in pixels of what is visible at each pixel, from ``frame`` to the next."""
    motions = np.concatenate([scene.motions, scene.wall.motion[None]]).astype(np.float32) * size
    return np.ascontiguousarray(motions[render_owners(scene, size, frame)].transpose(2, 0, 1))


def visible_boxes(scene: Scene, size: int, frame: int = 0) -> np.ndarray:
    """float32 (M, 6): x0, y0, x1, y1 in pixels (the edges of the visible pixels, so x1 - x0 is their width), kind (index in KINDS), object
    number. One row per object, nearest first."""
    owners = render_owners(scene, size, frame)
    boxes = np.empty((len(scene), 6), dtype=np.float32)
    for k in range(len(scene)):
        mine = owners == k
        columns, rows = np.flatnonzero(mine.any(axis=0)), np.flatnonzero(mine.any(axis=1))
        boxes[k] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, scene.kinds[k], k
    return boxes


class _Layer(NamedTuple):
    """One object where it may have pixels: ``window`` of the image; offsets from its centre in pixels (dx, dy broadcast against each
    other); first turned coordinate in radii; signed distance to its edge in pixels, negative inside (exact but for corners)."""

    number: int
    window: tuple[slice, slice]
    dx: np.ndarray
    dy: np.ndarray
    u: np.ndarray
    distance: np.ndarray


def _layers(scene: Scene, size: int, frame: int) -> Iterator[_Layer]:
    """Objects from the farthest to the nearest."""
    for k in reversed(range(len(scene))):
        radius = float(scene.radii[k]) * size
        cx, cy = (scene.centres[k] + frame * scene.motions[k]) * size
        x0, x1 = max(int(cx - radius - 1), 0), min(int(cx + radius + 2), size)
        y0, y1 = max(int(cy - radius - 1), 0), min(int(cy + radius + 2), size)
        dx = (np.arange(x0, x1) + 0.5 - cx).astype(np.float32)[None, :]
        dy = (np.arange(y0, y1) + 0.5 - cy).astype(np.float32)[:, None]
        cosine, sine = np.float32(np.cos(scene.angles[k]) / radius), np.float32(np.sin(scene.angles[k]) / radius)
        u, v = cosine * dx + sine * dy, cosine * dy - sine * dx
        yield _Layer(k, (slice(y0, y1), slice(x0, x1)), dx, dy, u, _distance(KINDS[scene.kinds[k]], u, v) * np.float32(radius))


def _distance(kind: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the edge of a shape of circumscribed radius 1, negative inside."""
    if kind == "circle":
        return np.sqrt(u * u + v * v) - 1
    if kind == "square":
        return np.maximum(np.abs(u), np.abs(v)) - np.float32(np.sqrt(0.5))
    if kind == "triangle":
        return np.maximum(np.float32(np.sqrt(0.75)) * np.abs(v) - 0.5 * u, u) - 0.5
    if kind == "cross":
        a, b = np.abs(u), np.abs(v)
        arm = np.float32(CORE)
        return np.maximum(np.minimum(a, b) - arm, np.maximum(a, b) - np.float32(np.sqrt(1 - CORE**2)))
    return _star_distance(u, v)


def _star_distance(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five points at radius 1, the corners between them at 0.5: folded onto one half point, whose edge is one line."""
    fifth = 2 * np.pi / 5
    angle = np.arctan2(np.abs(v), u)
    angle = np.abs(angle - np.float32(fifth) * np.rint(angle * np.float32(1 / fifth)))
    radius = np.sqrt(u * u + v * v)
    corner_x, corner_y = 0.5 * np.cos(fifth / 2), 0.5 * np.sin(fifth / 2)
    length = np.hypot(1 - corner_x, corner_y)
    normal_x, normal_y = corner_y / length, (1 - corner_x) / length
    return radius * (np.float32(normal_x) * np.cos(angle) + np.float32(normal_y) * np.sin(angle)) - np.float32(normal_x)


def _wall_coordinates(wall: Wall, size: int, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixel centres of a frame lie on the wall, in image widths: x (size,) and y (size,)."""
    centres = (np.arange(size) + 0.5) / size
    return (centres - frame * wall.motion[0]).astype(np.float32), (centres - frame * wall.motion[1]).astype(np.float32)


def _render_wall(wall: Wall, size: int, frame: int) -> np.ndarray:
    x, y = _wall_coordinates(wall, size, frame)
    x, y = (x - 0.5)[None, :], (y - 0.5)[:, None]
    mix = np.clip(0.5 + np.float32(np.cos(wall.gradient)) * x + np.float32(np.sin(wall.gradient)) * y, 0, 1)
    canvas = wall.colours[0] + mix[..., None] * (wall.colours[1] - wall.colours[0])
    if wall.pattern != "plain":
        direction, frequency, phase, strength = wall.waves
        cosine, sine = np.float32(2 * np.pi * frequency * np.cos(direction)), np.float32(2 * np.pi * frequency * np.sin(direction))
        waves = np.sin(cosine * x + sine * y + np.float32(phase))
        if wall.pattern == "checks":
            waves = np.sign(waves * np.sin(cosine * y - sine * x + np.float32(phase)))
        canvas += (np.float32(strength) * waves)[..., None]
    return canvas


def _layout(
    random: np.random.Generator, n: int, n_frames: int, camera: np.ndarray, own_motion: float, metres: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Radii (falling), centres in frame 0 and motions, drawn until they keep the promises at the top of this file."""
    radii = np.sort(random.uniform(*_RADII, n))[::-1]
    steps = np.arange(n_frames)[:, None]
    while True:
        centres, motions = np.zeros((0, 2)), np.zeros((0, 2))
        for k in range(n):
            # 32 candidates at once: place, motion, and the path they give, (32, n_frames, 2)
            motion = random.uniform(-own_motion, own_motion, (32, 2)) + camera * radii[k] / metres
            total = motion * (n_frames - 1)
            margin = _MARGIN * radii[k]
            low, high = margin - np.minimum(total, 0), 1 - margin - np.maximum(total, 0)
            start = low + random.random((32, 2)) * (high - low)
            path = start[:, None] + steps * motion[:, None]
            placed = centres[None, None] + steps[..., None] * motions[None, None]
            apart = np.hypot(*np.moveaxis(path[:, :, None] - placed, -1, 0)) >= radii[:k] + CORE * radii[k]
            good = np.flatnonzero(apart.all(axis=(1, 2)) & (low <= high).all(axis=1))
            if len(good) == 0:
                break
            centres, motions = np.vstack([centres, start[good[0]]]), np.vstack([motions, motion[good[0]]])
        else:
            return radii, centres, motions
        radii = np.maximum(radii * 0.95, _SMALLEST * (1 + 0.01 * np.arange(n)[::-1]))  # crowded: smaller objects, still in falling order
