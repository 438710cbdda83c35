"""What uploads of folders ask of Azure Blob Storage beside `tests.cloud.blobs`: containers' signatures, sizes, metadata.

https://learn.microsoft.com/en-us/rest/api/storageservices/get-blob-properties, /set-blob-metadata
"""

import time
from dataclasses import dataclass, field

from fastapi import FastAPI, Request
from fastapi.responses import Response

from tests.cloud.blobs import HEADERS, Blobs, blob_service, failure


@dataclass
class Containers:
    """A storage account, some of whose signatures are good for a whole container.

    Attributes:
        blobs: the account.
        metadata: ``{container/path: {name: value}}``.
    """

    blobs: Blobs
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)

    def sign(self, container: str) -> str:
        """Address of a container with a signature to read, write and list all in it."""
        return self.blobs.sign(container, "rcwl").replace("sr=b", "sr=c")

    def allows(self, name: str, signature: str) -> bool:
        """Whether a signature is good for the blob, or for its container."""
        granted, _, expiry = self.blobs.grants.get(signature, ("", "", 0.0))
        return granted in (name, name.partition("/")[0]) and expiry > time.time()


def container_service(containers: Containers) -> FastAPI:
    """Make the service of the storage account."""
    app = FastAPI()
    blobs = containers.blobs

    @app.middleware("http")
    async def whole_container(request: Request, call_next):
        name, query = request.url.path.lstrip("/"), request.query_params
        if request.method == "PUT" and "/" in name and "/" not in blobs.grants.get(query.get("sig", ""), ("/",))[0]:
            if not containers.allows(name, query["sig"]):
                return failure(403, "AuthenticationFailed", "Server failed to authenticate the request.")
            if query.get("comp") == "metadata":
                own = {k: v for k, v in request.headers.items() if k.startswith("x-ms-meta-")}
                containers.metadata[name] = own
                return Response(status_code=200, headers=HEADERS)
            if request.headers.get("x-ms-blob-type") != "BlockBlob":
                return failure(400, "MissingRequiredHeader", "x-ms-blob-type")
            blobs.content[name] = await request.body()
            return Response(status_code=201, headers=HEADERS)
        return await call_next(request)

    @app.head("/{name:path}")
    def head(name: str, request: Request) -> Response:
        if not containers.allows(name, request.query_params.get("sig", "")):
            return failure(403, "AuthenticationFailed", "Server failed to authenticate the request.")
        if name not in blobs.content:
            return failure(404, "BlobNotFound", "The specified blob does not exist.")
        own = {"x-ms-blob-type": "BlockBlob", "Content-Length": str(len(blobs.content[name]))}
        return Response(None, 200, HEADERS | own | containers.metadata.get(name, {}))

    app.mount("/", blob_service(blobs))
    return app
