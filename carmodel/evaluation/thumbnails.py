"""Small photos inside an HTML page, as ``data:`` URIs."""

import base64

import cv2
import numpy as np

from carmodel.data.images import resize

SIDE = 128
QUALITY = 80
HEAT = 0.45
"""Share of the heat map's colour in a picture."""


def thumbnail(image: np.ndarray, heat: np.ndarray | None = None) -> str:
    """Return a photo, uint8 (H, W, 3) RGB, as a ``data:`` URI of a small JPEG file.

    Args:
        image: the photo.
        heat: float (h, w) from 0 to 1, shown in colour over the photo: blue for 0, red for 1.
    """
    small = cv2.cvtColor(resize(image, SIDE, SIDE), cv2.COLOR_RGB2BGR)
    if heat is not None:
        grown = cv2.resize(heat.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        colour = cv2.applyColorMap((255 * np.clip(grown, 0, 1)).astype(np.uint8), cv2.COLORMAP_TURBO)
        small = cv2.addWeighted(small, 1 - HEAT, colour, HEAT, 0)
    jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"
