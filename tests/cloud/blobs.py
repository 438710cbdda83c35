"""A stand-in of Azure Blob Storage: block blobs that are written and read with shared access signatures (SAS).

The operations: https://learn.microsoft.com/en-us/rest/api/storageservices/operations-on-blobs
"""

import re
import secrets
import time
from dataclasses import dataclass, field
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import Response

HEADERS = {"ETag": '"0x1"', "Last-Modified": "Mon, 01 Jan 2026 00:00:00 GMT", "x-ms-version": "2025-05-05"}


@dataclass
class Blobs:
    """A storage account.

    Attributes:
        account: its name.
        content: ``{container/path: bytes}`` of the blobs that are whole.
        metadata: ``{container/path: {name: value}}``.
        grants: ``{signature: (name, permissions, expiry)}``; the name is a blob's, or that of a whole container.
        lifetime: of the signatures to come, in seconds.
    """

    account: str = "carmodelstore"
    content: dict[str, bytes] = field(default_factory=dict)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    blocks: dict[str, dict[str, bytes]] = field(default_factory=dict)
    grants: dict[str, tuple[str, str, float]] = field(default_factory=dict)
    lifetime: float = 3600

    def sign(self, name: str, permissions: str) -> str:
        """Return the URI of a blob or container with a signature for `permissions` (``r``, ``cw`` …)."""
        signature = f"sas+signature+{secrets.token_urlsafe(24)}"
        expiry = time.time() + self.lifetime
        self.grants[signature] = (name, permissions, expiry)
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expiry))
        query = (
            f"sv=2025-05-05&sr={'b' if '/' in name else 'c'}&sp={permissions}&se={quote(until)}&sig={quote(signature)}"
        )
        return f"https://{self.account}.blob.core.windows.net/{quote(name)}?{query}"

    def refusal(self, name: str, permission: str, request: Request) -> Response | None:
        """Return the answer to a request without the right signature."""
        signature = request.query_params.get("sig", "")
        granted, permissions, expiry = self.grants.get(signature, ("", "", 0.0))
        if granted not in (name, name.partition("/")[0]) or expiry <= time.time():
            return failure(403, "AuthenticationFailed", "Server failed to authenticate the request.")
        if permission not in permissions:
            return failure(403, "AuthorizationPermissionMismatch", "This request is not authorized.")
        return None


def failure(status: int, code: str, message: str) -> Response:
    """Return an error as the service sends it."""
    body = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Response(body, status, {"x-ms-error-code": code}, "application/xml")


def blob_service(blobs: Blobs) -> FastAPI:
    """Make the service of a storage account."""
    app = FastAPI()

    @app.put("/{name:path}")
    async def put(name: str, request: Request) -> Response:
        comp, body = request.query_params.get("comp"), await request.body()
        if refusal := blobs.refusal(name, "w", request):
            return refusal
        if comp == "metadata":
            blobs.metadata[name] = {k: v for k, v in request.headers.items() if k.startswith("x-ms-meta-")}
        elif comp == "block":
            blobs.blocks.setdefault(name, {})[request.query_params["blockid"]] = body
        elif request.headers.get("if-none-match") == "*" and name in blobs.content:
            return failure(409, "BlobAlreadyExists", "The specified blob already exists.")
        elif comp == "blocklist":
            listed = re.findall(r"<(?:Latest|Uncommitted)>([^<]+)<", body.decode())
            if missing := [block for block in listed if block not in blobs.blocks.get(name, {})]:
                return failure(400, "InvalidBlockList", f"The specified block list is invalid: {missing}")
            blobs.content[name] = b"".join(blobs.blocks.pop(name, {})[block] for block in listed)
        elif request.headers.get("x-ms-blob-type") == "BlockBlob":
            blobs.content[name] = body
        else:
            return failure(400, "MissingRequiredHeader", "x-ms-blob-type")
        return Response(status_code=200 if comp == "metadata" else 201, headers=HEADERS)

    @app.api_route("/{name:path}", methods=["GET", "HEAD"])
    def get(name: str, request: Request) -> Response:
        if refusal := blobs.refusal(name, "r", request):
            return refusal
        if (content := blobs.content.get(name)) is None:
            return failure(404, "BlobNotFound", "The specified blob does not exist.")
        return ranged(content, request, blobs.metadata.get(name, {}))

    return app


def ranged(content: bytes, request: Request, metadata: dict[str, str]) -> Response:
    """Return a blob, or the part of it that is asked for."""
    headers = HEADERS | {"x-ms-blob-type": "BlockBlob"} | metadata
    asked = request.headers.get("x-ms-range") or request.headers.get("range")
    if request.method == "HEAD":
        return Response(None, 200, headers | {"Content-Length": str(len(content))})
    if not asked:
        return Response(content, 200, headers, "application/octet-stream")
    first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
    if first >= len(content):
        return failure(416, "InvalidRange", "The range specified is invalid for the current size of the resource.")
    part = content[first : last + 1]
    headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
    return Response(part, 206, headers, "application/octet-stream")
