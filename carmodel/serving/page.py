"""A web page in front of the endpoint: choose photos, draw a box around the car, see the five most likely models.

The page is plain HTML, CSS and JavaScript in ``static/``. It talks to this server alone, which passes photos on to the
endpoint, so it works without access to other hosts.
"""

import asyncio
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from urllib3.exceptions import HTTPError, ResponseError

from carmodel.serving.client import connect

STATIC = Path(__file__).parent / "static"
MAX_BYTES = 30_000_000
"""Largest request: a photo of 20 MB is 27 MB of Base64 text."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # another model may be served at the same address later
}


def create_page(
    endpoint: str, about: Mapping[str, Any], examples: Mapping[int, Path], samples: Sequence[bytes]
) -> FastAPI:
    """Return the page's server.

    Args:
        endpoint: URL of the scoring server.
        about: facts about the model, as `carmodel.serving.about.about_model` returns them.
        examples: pictures of training photos, by class id.
        samples: JPEG files to try.
    """
    app = FastAPI(openapi_url=None)
    http = connect(retries=1, connections=4)

    @app.middleware("http")
    async def add_headers(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    @app.get("/about.json")
    def get_about() -> dict[str, Any]:
        return {**about, "examples": sorted(examples), "samples": len(samples)}

    @app.get("/examples/{class_id}.jpg")
    def get_examples(class_id: int) -> FileResponse:
        if class_id not in examples:
            raise HTTPException(404)
        return FileResponse(examples[class_id])

    @app.get("/samples/{number}.jpg")
    def get_sample(number: int) -> Response:
        if not 0 <= number < len(samples):
            raise HTTPException(404)
        return Response(samples[number], media_type="image/jpeg")

    @app.post("/invocations")
    async def classify(request: Request) -> Response:
        body, url = bytearray(), f"{endpoint}/invocations"
        async for part in request.stream():  # a client may send more than its Content-Length says
            body += part
            if len(body) > MAX_BYTES:
                raise HTTPException(413)
        headers = {"Content-Type": "application/json"}
        try:
            answer = await asyncio.to_thread(http.request, "POST", url, body=bytes(body), headers=headers)
        except HTTPError as error:
            answered = isinstance(getattr(error, "reason", None), ResponseError)  # with a fault, each time
            raise HTTPException(500 if answered else 502) from None
        return Response(answer.data, answer.status, media_type="application/json")

    app.mount("/", StaticFiles(directory=STATIC, html=True))
    return app


def run_page(page: FastAPI, host: str, port: int) -> None:
    """Serve the page until the process receives SIGINT or SIGTERM."""
    uvicorn.run(page, host=host, port=port, log_level="warning", timeout_graceful_shutdown=3)


def page_url(host: str, port: int) -> str:
    """Return a URL that opens the page: for 0.0.0.0, the one that other machines can use."""
    if host == "127.0.0.1":
        host = "localhost"
    elif host == "0.0.0.0":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))  # sends nothing; chooses the network interface
                host = probe.getsockname()[0]
            except OSError:
                host = socket.gethostname()
    return f"http://{host}:{port}"
