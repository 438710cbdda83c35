"""Draw backgrounds: sky, hills or houses, trees, and a road."""

import cv2
import numpy as np

Colour = tuple[float, float, float]

# Colours at the top of the sky and at the horizon, for different times of day and weather.
SKIES: tuple[tuple[Colour, Colour], ...] = (
    ((72, 130, 202), (196, 220, 238)),
    ((128, 158, 192), (222, 226, 226)),
    ((92, 108, 158), (244, 192, 146)),
    ((150, 158, 166), (204, 206, 206)),
    ((58, 72, 116), (200, 156, 160)),
)
GROUNDS: tuple[Colour, ...] = ((112, 142, 74), (148, 138, 96), (126, 126, 122), (92, 118, 70), (176, 160, 124))
WALLS: tuple[Colour, ...] = ((172, 128, 104), (196, 190, 178), (142, 148, 156), (206, 182, 142), (122, 96, 88))


def draw_scene(width: int, height: int, road_top: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene with a road.

    Args:
        width: in pixels.
        height: in pixels.
        road_top: row where the road begins, below the horizon.
        rng: generator of the scene.

    Returns:
        uint8 (height, width, 3) RGB.
    """
    horizon = road_top - int(rng.uniform(0.04, 0.14) * height)
    scene = _sky(width, height, horizon, rng)
    if rng.random() < 0.6:
        _clouds(scene, horizon, rng)
    if rng.random() < 0.6:
        _hills(scene, horizon, rng)
    ground = np.array(GROUNDS[rng.integers(len(GROUNDS))]) * rng.uniform(0.85, 1.1)
    scene[horizon:] = _gradient(ground * 1.08, ground * 0.9, height - horizon)[:, None]
    if rng.random() < 0.55:
        _houses(scene, horizon, rng)
    if rng.random() < 0.65:
        _trees(scene, horizon, road_top, rng)
    _road(scene, road_top, rng)
    return scene


def _gradient(top: np.ndarray, bottom: np.ndarray, rows: int) -> np.ndarray:
    t = np.linspace(0, 1, max(rows, 1))[:, None]
    return np.clip((1 - t) * top + t * bottom, 0, 255).astype(np.uint8)


def _sky(width: int, height: int, horizon: int, rng: np.random.Generator) -> np.ndarray:
    top, bottom = SKIES[rng.integers(len(SKIES))]
    scene = np.zeros((height, width, 3), np.uint8)
    scene[:horizon] = _gradient(np.array(top), np.array(bottom), horizon)[:, None]
    return scene


def _clouds(scene: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    sky = scene[:horizon]
    white = np.zeros(sky.shape[:2], np.uint8)
    for _ in range(rng.integers(2, 6)):
        x, y = rng.uniform(0, scene.shape[1]), rng.uniform(0, 0.7 * horizon)
        for _ in range(4):
            centre = (int(x + rng.normal(0, 0.06) * scene.shape[1]), int(y + rng.normal(0, 0.03) * horizon))
            axes = (int(rng.uniform(0.04, 0.1) * scene.shape[1]), int(rng.uniform(0.03, 0.07) * horizon) + 1)
            cv2.ellipse(white, centre, axes, 0, 0, 360, int(rng.uniform(120, 200)), -1, cv2.LINE_AA)
    soft = cv2.merge([cv2.blur(cv2.blur(white, (11, 11)), (11, 11))] * 3)
    sky[:] = cv2.add(cv2.multiply(sky, 255 - soft, scale=1 / 255), soft)


def _hills(scene: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    width = scene.shape[1]
    x = np.linspace(0, 2 * np.pi, 40)
    for distance in (1.0, 0.6):
        waves = sum(np.sin(x * rng.uniform(0.5, 2.5) + rng.uniform(0, 6)) for _ in range(3)) / 3
        y = horizon - (0.12 + 0.09 * waves) * horizon * distance
        ridge = np.column_stack([x / (2 * np.pi) * width, y]).round().astype(np.int32)
        hill = np.vstack([ridge, [[width, horizon], [0, horizon]]]).astype(np.int32)
        haze = np.array([128, 146, 166]) * distance + np.array([84, 116, 84]) * (1 - distance)
        cv2.fillPoly(scene, [hill], haze.tolist(), cv2.LINE_AA)


def _houses(scene: np.ndarray, horizon: int, rng: np.random.Generator) -> None:
    width = scene.shape[1]
    x = int(rng.uniform(-0.2, 0.4) * width)
    while x < width and rng.random() < 0.85:
        wide, high = int(rng.uniform(0.14, 0.32) * width), int(rng.uniform(0.25, 0.75) * horizon)
        wall = np.array(WALLS[rng.integers(len(WALLS))]) * rng.uniform(0.8, 1.1)
        base = horizon + int(0.02 * horizon)
        cv2.rectangle(scene, (x, base - high), (x + wide, base), np.clip(wall, 0, 255).tolist(), -1)
        glass = np.clip(wall * rng.choice([0.45, 1.35]), 0, 255).tolist()
        pane, step = max(3, wide // 9), max(8, wide // 5)
        for top in range(base - high + pane, base - 2 * pane, int(step * 1.2)):
            for left in range(x + pane, x + wide - pane, step):
                cv2.rectangle(scene, (left, top), (left + pane, top + int(1.4 * pane)), glass, -1)
        x += wide + int(rng.uniform(0, 0.2) * width)


def _trees(scene: np.ndarray, horizon: int, road_top: int, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 7)):
        x, base = int(rng.uniform(0, scene.shape[1])), int(rng.uniform(horizon, road_top))
        high = int(rng.uniform(0.25, 0.6) * horizon)
        leaf = np.array([58, 96, 48]) * rng.uniform(0.7, 1.3) + (rng.uniform(0, 40), 0, 0)
        cv2.line(scene, (x, base), (x, base - high // 2), (78, 60, 44), max(2, high // 12), cv2.LINE_AA)
        for _ in range(9):
            centre = (x + int(rng.normal(0, 0.14) * high), base - int(rng.uniform(0.45, 1.0) * high))
            shade = np.clip(leaf * rng.uniform(0.8, 1.2), 0, 255).tolist()
            cv2.circle(scene, centre, max(2, int(rng.uniform(0.1, 0.2) * high)), shade, -1, cv2.LINE_AA)


def _road(scene: np.ndarray, top: int, rng: np.random.Generator) -> None:
    height, width = scene.shape[:2]
    asphalt = np.full(3, rng.uniform(70, 130)) + rng.normal(0, 3, 3)
    scene[top:] = _gradient(asphalt * 1.1, asphalt * 0.85, height - top)[:, None]
    cv2.rectangle(scene, (0, top), (width, top + max(1, height // 90)), (asphalt * 1.35).clip(0, 255).tolist(), -1)
    if rng.random() < 0.6:
        row = top + int(rng.uniform(0.72, 0.9) * (height - top))
        dash, start = int(0.16 * width), -int(rng.uniform(0, 0.2) * width)
        for left in range(start, width, 2 * dash):
            corners = np.array([[left, row], [left + dash, row], [left + dash - 4, row + 4], [left - 4, row + 4]])
            cv2.fillPoly(scene, [corners.astype(np.int32)], (224, 220, 200), cv2.LINE_AA)
