"""Draw one photo of a car in a random pose and light, in front of a background."""

import cv2
import numpy as np

from carmodel.data.drawing.bodies import Body
from carmodel.data.drawing.painting import CANVAS, GROUND, paint_car, random_look
from carmodel.data.drawing.scenery import draw_scene

Box = tuple[int, int, int, int]

OVERSAMPLING = 2  # photos are drawn at twice the size and then averaged, for smooth edges


def draw_photo(body: Body, rng: np.random.Generator) -> tuple[np.ndarray, Box]:
    """Draw a car of the given body.

    Returns:
        uint8 (H, W, 3) RGB with W from 160 to 240, and the box of the car inside the frame: (x1, y1, x2, y2), 0-based, x2
        and y2 exclusive.
    """
    width = int(rng.integers(160, 241))
    height = int(width * rng.uniform(0.64, 0.8))
    size = (OVERSAMPLING * width, OVERSAMPLING * height)
    car = paint_car(body, random_look(rng))
    pose = _random_pose(car, size, rng)
    placed = cv2.warpPerspective(car, pose, size, flags=cv2.INTER_LINEAR)
    x, y, w, h = cv2.boundingRect(cv2.threshold(placed[..., 3], 127, 255, cv2.THRESH_BINARY)[1])
    scene = draw_scene(*size, y + h - int(rng.uniform(0.1, 0.3) * h), rng)
    _cast_shadow(scene, (x, y, w, h), rng)
    alpha = placed[y : y + h, x : x + w, 3] * np.float32(1 / 255)
    behind = scene[y : y + h, x : x + w]
    behind[:] = cv2.blendLinear(behind, placed[y : y + h, x : x + w, :3].copy(), 1 - alpha, alpha)
    picture = cv2.resize(scene, (width, height), interpolation=cv2.INTER_AREA)
    box = (x // OVERSAMPLING, y // OVERSAMPLING, -(-(x + w) // OVERSAMPLING), -(-(y + h) // OVERSAMPLING))
    return light(picture, rng), box


def _random_pose(car: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return a homography (3, 3) from the layer of the car to the frame, which mirrors, rotates, tilts and places the car."""
    corners = np.array([[0, 0], [CANVAS[0], 0], [CANVAS[0], CANVAS[1]], [0, CANVAS[1]]], np.float64)
    target = corners - (CANVAS[0] / 2, GROUND)
    if rng.random() < 0.5:
        target[:, 0] *= -1
    near = 1 + rng.uniform(-0.13, 0.13) * np.sign(target[:, 0])
    target *= np.column_stack([np.full(4, rng.uniform(0.8, 1.0)), near])
    angle, shear = np.deg2rad(rng.uniform(-4, 4)), rng.uniform(-0.06, 0.06)
    target @= np.array([[np.cos(angle), np.sin(angle)], [shear - np.sin(angle), np.cos(angle)]])
    seen = cv2.getPerspectiveTransform(corners.astype(np.float32), target.astype(np.float32))
    contours, _ = cv2.findContours(car[..., 3], cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    shape = cv2.perspectiveTransform(np.concatenate(contours).astype(np.float64), seen)[:, 0]
    low, high = shape.min(axis=0), shape.max(axis=0)
    scale = min(rng.uniform(0.6, 0.86) * size[0] / (high[0] - low[0]), 0.82 * size[1] / (high[1] - low[1]))
    free = size - scale * (high - low)
    corner = free * (rng.uniform(0.1, 0.9), rng.uniform(0.5, 0.92))
    placing = np.array([[scale, 0, corner[0] - scale * low[0]], [0, scale, corner[1] - scale * low[1]], [0, 0, 1]])
    return placing @ seen


def _cast_shadow(scene: np.ndarray, car: Box, rng: np.random.Generator) -> None:
    x, y, w, h = car
    top = y + h // 2
    ground = scene[top:]
    shadow = np.zeros(ground.shape[:2], np.uint8)
    centre = (int(x + w / 2 + rng.uniform(-0.08, 0.08) * w), int(y + 0.97 * h) - top)
    cv2.ellipse(shadow, centre, (int(0.52 * w), int(0.09 * h)), 0, 0, 360, int(rng.uniform(130, 220)), -1, cv2.LINE_AA)
    soft = cv2.merge([cv2.blur(cv2.blur(shadow, (13, 13)), (13, 13))] * 3)
    ground[:] = cv2.multiply(ground, 255 - soft, scale=1 / 255)


def light(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change the brightness, colour and direction of the light and the contrast, and add blur and sensor noise."""
    height, width = picture.shape[:2]
    warmth = rng.uniform(-0.08, 0.08)
    across = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * np.float32(rng.uniform(-0.14, 0.14))
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None] * np.float32(rng.uniform(-0.1, 0.1))
    light = rng.uniform(0.72, 1.12) * np.array([1 + warmth, 1, 1 - warmth])
    lit: np.ndarray = picture * ((1 + across + down) * light.astype(np.float32))
    contrast = np.float32(rng.uniform(0.85, 1.1))
    lit *= contrast
    lit += 118 * (1 - contrast)
    if rng.random() < 0.3:
        lit = cv2.GaussianBlur(lit, (0, 0), rng.uniform(0.4, 0.9))
    lit += np.float32(rng.uniform(1.0, 6.0)) * rng.standard_normal((height, width, 1), np.float32)
    return cv2.convertScaleAbs(np.maximum(lit, 0))
