"""Paint a car on a transparent layer."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from carmodel.data.drawing.bodies import Body, Point, Polygon

Colour = tuple[float, float, float]

PIXELS_PER_METRE = 76
CANVAS = (488, 228)  # width and height in pixels, enough for the longest and the tallest body with their far sides
GROUND = 212  # row of the ground line
LEFT = 42  # column of the rear bumper
PAINTS: tuple[Colour, ...] = (
    (186, 28, 34), (24, 62, 148), (238, 238, 236), (30, 32, 36), (158, 164, 170), (24, 84, 58), (236, 188, 36),
    (222, 104, 28), (20, 132, 142), (96, 20, 44), (206, 190, 158), (84, 92, 104), (112, 168, 214), (124, 148, 58),
)  # fmt: skip
GLASS: Colour = (38, 50, 62)
SKY: Colour = (168, 196, 218)
RUBBER: Colour = (24, 24, 26)
TRIM: Colour = (34, 35, 38)
SEAT: Colour = (104, 68, 46)
_SHIFT = 4  # fractional bits of OpenCV's coordinates


@dataclass(frozen=True)
class Look:
    """The differences between two cars of the same body.

    Attributes:
        paint: colour of the body.
        rim: colour of the rims.
        spokes: number of spokes per rim.
        depth: offset of the far side in metres, to the right and up.
    """

    paint: Colour
    rim: Colour
    spokes: int
    depth: Point


def random_look(rng: np.random.Generator) -> Look:
    """Return a random look, independent of the body."""
    shade = rng.uniform(0.85, 1.1)
    paint = PAINTS[rng.integers(len(PAINTS))]
    rim = float(rng.uniform(120, 215))
    return Look(
        paint=(min(255, paint[0] * shade), min(255, paint[1] * shade), min(255, paint[2] * shade)),
        rim=(rim, rim, rim + 4),
        spokes=int(rng.integers(5, 9)),
        depth=(float(rng.uniform(0.1, 0.42) * rng.choice([-1, 1])), float(rng.uniform(0.03, 0.13))),
    )


def paint_car(body: Body, look: Look) -> np.ndarray:
    """Paint a car that faces right.

    Returns:
        uint8 (CANVAS height, width, 4) RGBA, transparent around the car.
    """
    layer = np.zeros((CANVAS[1], CANVAS[0], 4), np.uint8)
    outline = _rounded(body.outline)
    for x in body.wheels:
        _disc(layer, (x + look.depth[0], body.wheel_radius + look.depth[1]), body.wheel_radius, RUBBER)
    _far_side(layer, outline, look)
    for part in body.cabin:
        _fill(layer, _rounded(part), SEAT)
    _panel(layer, outline, look.paint)
    _sill(layer, body)
    for window in body.windows:
        _window(layer, window)
    for part in body.trim:
        _fill(layer, _rounded(part, 1), TRIM)
    _details(layer, body, look)
    for x in body.wheels:
        _wheel(layer, (x, body.wheel_radius), body.wheel_radius, look)
    return layer


def _pixels(points: Polygon | np.ndarray, offset: Point = (0.0, 0.0)) -> np.ndarray:
    xy = (np.asarray(points, float) + offset) * (PIXELS_PER_METRE, -PIXELS_PER_METRE) + (LEFT, GROUND)
    return np.round(xy * 2**_SHIFT).astype(np.int32)


@lru_cache(maxsize=256)
def _rounded(points: Polygon, times: int = 2) -> np.ndarray:
    """Turn a closed polygon into a smooth curve by cutting its corners (Chaikin, 1974)."""
    curve = np.asarray(points, float)
    for _ in range(times):
        following = np.roll(curve, -1, axis=0)
        curve = np.stack([0.75 * curve + 0.25 * following, 0.25 * curve + 0.75 * following], axis=1).reshape(-1, 2)
    return curve


def _fill(layer: np.ndarray, points: Polygon | np.ndarray, colour: Colour, offset: Point = (0.0, 0.0)) -> None:
    cv2.fillPoly(layer, [_pixels(points, offset)], (*colour, 255), cv2.LINE_AA, _SHIFT)


def _line(layer: np.ndarray, points: Polygon | np.ndarray, colour: Colour, width: int = 1) -> None:
    cv2.polylines(layer, [_pixels(points)], False, (*colour, 255), width, cv2.LINE_AA, _SHIFT)


def _disc(layer: np.ndarray, centre: Point, radius: float, colour: Colour) -> None:
    (x, y), r = _pixels((centre,))[0], round(radius * PIXELS_PER_METRE * 2**_SHIFT)
    cv2.circle(layer, (int(x), int(y)), r, (*colour, 255), -1, cv2.LINE_AA, _SHIFT)


def _shaded(colour: Colour, factor: float) -> Colour:
    return (min(255.0, colour[0] * factor), min(255.0, colour[1] * factor), min(255.0, colour[2] * factor))


def _far_side(layer: np.ndarray, outline: np.ndarray, look: Look) -> None:
    # Moving the outline from the far side to the near side draws the roof, the bonnet and the visible end.
    for t in np.linspace(1.0, 0.0, 12):
        _fill(layer, outline, _shaded(look.paint, 0.5 + 0.22 * (1 - t)), (t * look.depth[0], t * look.depth[1]))


def _blend(layer: np.ndarray, points: np.ndarray, colours: np.ndarray, strength: np.ndarray) -> None:
    """Blend a colour per row of the layer (N, 3), with a strength per row (N,), into the inside of a polygon."""
    x, y, w, h = cv2.boundingRect((_pixels(points) >> _SHIFT) - 1)
    here = np.s_[y : y + h + 2, x : x + w + 2]
    mask = np.zeros(layer.shape[:2], np.uint8)
    cv2.fillPoly(mask, [_pixels(points)], 255, cv2.LINE_AA, _SHIFT)
    alpha = mask[here] * (strength[here[0], None] / 255).astype(np.float32)
    over = np.empty_like(layer[here])
    over[..., :3] = colours[here[0], None]
    over[..., 3] = 255
    layer[here] = cv2.blendLinear(layer[here], over, 1 - alpha, alpha)


def _panel(layer: np.ndarray, outline: np.ndarray, paint: Colour) -> None:
    # Light from the sky makes the shoulder bright and the sill dark, with a soft crease between them.
    height = (GROUND - np.arange(CANVAS[1])) / PIXELS_PER_METRE / outline[:, 1].max()
    light = np.interp(height, [0.1, 0.3, 0.48, 0.5, 0.62, 0.7, 1.0], [0.5, 0.78, 0.95, 0.86, 1.02, 1.18, 1.1])[:, None]
    colours = np.clip(light * np.asarray(paint) + 14 * (light > 1.1), 0, 255)
    _blend(layer, outline, colours, np.ones(CANVAS[1]))


def _sill(layer: np.ndarray, body: Body) -> None:
    rear, front = body.wheels
    bottom = min(y for _, y in body.outline)
    _fill(layer, ((rear, bottom), (rear, bottom + 0.07), (front, bottom + 0.07), (front, bottom)), TRIM)


def _window(layer: np.ndarray, window: Polygon) -> None:
    glass = _rounded(window, 1)
    _fill(layer, glass, GLASS)
    # The upper half of the glass reflects the sky.
    low, high = glass[:, 1].min(), glass[:, 1].max()
    height = ((GROUND - np.arange(CANVAS[1])) / PIXELS_PER_METRE - low) / (high - low)
    _blend(layer, glass, np.full((CANVAS[1], 3), SKY), 0.9 * np.clip(height - 0.5, 0, 0.5))


def _details(layer: np.ndarray, body: Body, look: Look) -> None:
    for seam in body.seams:
        _line(layer, seam, _shaded(look.paint, 0.45))
    for seam in body.seams[1:3]:
        x = max(point[0] for point in seam)
        y = 0.62 * max(point[1] for point in body.windows[-1])
        _line(layer, ((x - 0.28, y), (x - 0.14, y)), _shaded(look.paint, 0.4), 2)
    (tail_x, tail_y), (head_x, head_y) = body.lamps
    _fill(layer, _rounded(((tail_x, tail_y), (tail_x + 0.02, tail_y + 0.16), (tail_x + 0.2, tail_y + 0.14),
                           (tail_x + 0.13, tail_y)), 1), (196, 24, 28))  # fmt: skip
    _fill(layer, _rounded(((head_x, head_y), (head_x - 0.3, head_y + 0.1), (head_x - 0.22, head_y - 0.03),
                           (head_x + 0.02, head_y - 0.07)), 1), (246, 242, 214))  # fmt: skip
    if not body.cabin:
        x, y = body.windows[-1][-1]
        _fill(layer, _rounded(((x - 0.24, y), (x - 0.26, y + 0.12), (x - 0.1, y + 0.12), (x - 0.06, y + 0.01)), 1),
              _shaded(look.paint, 0.7))  # fmt: skip


def _wheel(layer: np.ndarray, centre: Point, radius: float, look: Look) -> None:
    x, y = centre
    _disc(layer, (x, y + 0.02), radius * 1.16, (14, 14, 15))
    _disc(layer, centre, radius, RUBBER)
    _disc(layer, centre, radius * 0.66, (52, 53, 56))
    for angle in np.arange(look.spokes) * (2 * np.pi / look.spokes) + 0.3:
        tip = (x + 0.6 * radius * np.cos(angle), y + 0.6 * radius * np.sin(angle))
        _line(layer, (centre, tip), look.rim, 4)
    rim = _pixels((centre,))[0]
    cv2.circle(layer, (int(rim[0]), int(rim[1])), round(0.62 * radius * PIXELS_PER_METRE * 2**_SHIFT), (*look.rim, 255),
               2, cv2.LINE_AA, _SHIFT)  # fmt: skip
    _disc(layer, centre, radius * 0.16, look.rim)
