"""A web page in front of the endpoint: drop, paste or choose photos, and see the five likeliest cars.

It is made with NiceGUI (https://nicegui.io), which serves its own scripts and fonts: the browser talks to this page alone,
and this page to the endpoint alone.
"""

import asyncio
import base64
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
from nicegui import events, ui

from carmodel.data.images import ImageError, decode
from carmodel.serving.client import BATCH, EndpointError, ask, connect, row_of
from carmodel.serving.rows import BOX_COLUMNS

TOP_K = 5
FORMATS = ("image/jpeg", "image/png", "image/webp", "image/bmp")
MAX_BYTES = 20_000_000
PREVIEW = 480
"""Longest side of a photo as the page shows it, in pixels."""

# Paste and drop work on the whole page; the uploader handles what is dropped on itself.
ANYWHERE = """
for (const kind of ["paste", "drop"]) document.addEventListener(kind, (event) => {
  const files = (event.clipboardData ?? event.dataTransfer).files;
  if (files.length === 0) return;
  event.preventDefault();
  getElement(%d).$refs.qRef.addFiles(files);
});
document.addEventListener("dragover", (event) => event.preventDefault());
"""


def show(endpoint: str, host: str, port: int, model: str, examples: Mapping[int, Path]) -> None:
    """Serve the page until the process is told to end (SIGINT or SIGTERM).

    Args:
        endpoint: address of the scoring server.
        host: address of this machine to listen at; 0.0.0.0 lets other machines, such as a phone, see the page.
        port: of the page.
        model: what is served, for the page's head.
        examples: a picture of examples by class id, for the classes that have one.
    """
    ui.run(
        lambda: _page(endpoint, model, examples),
        host=host,
        port=port,
        title="Which car is this?",
        favicon="🚗",
        dark=None,  # as the browser likes it
        reload=False,
        show=False,
        show_welcome_message=False,
    )


def _page(endpoint: str, model: str, examples: Mapping[int, Path]) -> None:
    http = connect(retries=2, connections=4)
    boxes: dict[str, Any] = {}

    async def classify(event: events.MultiUploadEventArguments) -> None:
        upload.reset()
        photos = [(file.name, await file.read()) for file in event.files]
        rows = [row_of(photo) | _filled(boxes) for _, photo in photos]
        busy.set_visibility(True)
        began = time.perf_counter()
        try:
            answers = []
            for start in range(0, len(rows), BATCH):
                answers += await asyncio.to_thread(ask, http, endpoint, rows[start : start + BATCH], TOP_K)
            seconds = time.perf_counter() - began
            previews = [await asyncio.to_thread(preview, photo) for _, photo in photos]
        except EndpointError as error:
            ui.notify(str(error), type="negative", multi_line=True, timeout=0, close_button="OK")
            return
        finally:
            busy.set_visibility(False)
        latency.set_text(f"{len(rows)} {'photo' if len(rows) == 1 else 'photos'} answered in {1000 * seconds:.0f} ms")
        with results:
            # The newest on top, in the order in which they were given.
            for place, ((name, _), answer, picture) in enumerate(zip(photos, answers, previews, strict=True)):
                _card(name, answer, picture, examples).move(target_index=place)

    with ui.column().classes("w-full max-w-2xl mx-auto items-stretch"):
        ui.label("Which car is this?").classes("text-2xl")
        ui.label(model).classes("text-sm opacity-70 break-all")
        upload = ui.upload(
            label="Drop, paste or choose photos",
            multiple=True,
            auto_upload=True,
            max_file_size=MAX_BYTES,
            on_multi_upload=classify,
            on_rejected=lambda: ui.notify(f"JPEG, PNG, WebP or BMP, up to {MAX_BYTES // 10**6} MB", type="warning"),
        )
        upload.props(f'accept="{",".join(FORMATS)}" flat bordered').classes("w-full")
        with ui.expansion("A box around the car, if you know it").classes("w-full"):
            ui.label("In pixels of the photo; left empty, the whole photo counts as the car.").classes("text-sm")
            with ui.row().classes("w-full no-wrap"):
                for corner in BOX_COLUMNS:
                    ui.number(corner, min=0, precision=0).bind_value_to(boxes, corner).classes("w-1/4")
        with ui.row().classes("items-center"):
            latency = ui.label().classes("text-sm opacity-70")
            busy = ui.spinner(size="sm")
            busy.set_visibility(False)
        results = ui.column().classes("w-full items-stretch")
    ui.add_body_html(f"<script>{ANYWHERE % upload.id}</script>")


def _card(name: str, answer: Mapping[str, Any], picture: str | None, examples: Mapping[int, Path]) -> ui.card:
    with ui.card().classes("w-full gap-2") as card:
        if picture is not None:
            ui.image(picture).props("fit=contain").classes("w-full max-h-72")
        ui.label(name).classes("text-sm opacity-70 break-all")
        if answer["error"] is not None:
            ui.label(answer["error"]).classes("text-negative")
            return card
        for car in answer["top_k"]:
            with ui.column().classes("w-full gap-0"):
                with ui.row().classes("w-full justify-between no-wrap"):
                    ui.label(car["label"])
                    ui.label(f"{car['probability']:.1%}")
                bar = ui.linear_progress(car["probability"], show_value=False, size="0.5rem")
                bar.props("rounded instant-feedback")
        if strip := examples.get(answer["class_id"]):
            ui.label(f"Examples of {answer['label']} in the training photos").classes("text-sm opacity-70")
            ui.image(strip).classes("w-full")
    return card


def _filled(boxes: Mapping[str, Any]) -> dict[str, Any]:
    """The corners that were given; the classifier says what is wrong when some are missing."""
    return {corner: value for corner, value in boxes.items() if value is not None}


def preview(photo: bytes) -> str | None:
    """Return the photo no larger than the page shows it, as a ``data:`` address, or None when it can't be decoded."""
    try:
        pixels = decode(photo)
    except ImageError:
        return None
    height, width = pixels.shape[:2]
    factor = min(1.0, PREVIEW / max(height, width))
    size = max(1, round(factor * width)), max(1, round(factor * height))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))[1]
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"
