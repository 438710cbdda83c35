"""A stand-in of a storage account of Azure Data Lake Storage Gen2, to read: a folder of this machine is its file system.

The operations: https://learn.microsoft.com/en-us/rest/api/storageservices/datalakestoragegen2/path/list, which the account's
``dfs`` host answers, and https://learn.microsoft.com/en-us/rest/api/storageservices/get-blob, by which the client reads files
from its ``blob`` host.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from tests.cloud.blobs import failure, ranged
from tests.cloud.identity import Identity

AUDIENCE = "https://storage.azure.com"
VERSION = re.compile(r"20\d\d-\d\d-\d\d")


@dataclass
class Lake:
    """A storage account with one file system.

    Attributes:
        identity: who may read it.
        folder: what is in it.
        account, file_system: names.
        page: paths that are listed at a time.
    """

    identity: Identity
    folder: Path
    account: str = "carphotos"
    file_system: str = "photos"
    page: int = 7

    @property
    def uri(self) -> str:
        """Address of the whole file system."""
        return f"abfss://{self.file_system}@{self.account}.dfs.core.windows.net"

    def refusal(self, request: Request) -> Response | None:
        """The answer to a request without a storage token, or without the version that goes with one."""
        if said := self.identity.refusal(request.headers.get("authorization", ""), AUDIENCE):
            return failure(401, "InvalidAuthenticationInfo", f"Server failed to authenticate the request: {said}")
        if not VERSION.fullmatch(request.headers.get("x-ms-version", "")):
            return failure(400, "MissingRequiredHeader", "x-ms-version")
        return None


def missing(code: str) -> JSONResponse:
    """What the ``dfs`` host says of a path that is not there."""
    error = {"code": code, "message": "The specified path does not exist."}
    return JSONResponse({"error": error}, 404, {"x-ms-error-code": code})


def lake_service(lake: Lake) -> FastAPI:
    """Make the service, for both hosts of the account."""
    app = FastAPI()

    @app.get("/{file_system}")
    def paths(request: Request, file_system: str, directory: str = "", continuation: int = 0) -> Response:
        if refusal := lake.refusal(request):
            return refusal
        if request.query_params.get("resource") != "filesystem" or request.query_params.get("recursive") != "false":
            return failure(400, "InvalidQueryParameterValue", "resource, recursive")
        if file_system != lake.file_system:
            return missing("FilesystemNotFound")
        if not (folder := lake.folder / directory).exists():
            return missing("PathNotFound")
        entries = sorted(folder.iterdir()) if folder.is_dir() else [folder]
        said = [entry(path, lake.folder) for path in entries[continuation : continuation + lake.page]]
        rest = continuation + lake.page
        headers = {"x-ms-continuation": str(rest)} if rest < len(entries) else {}
        return JSONResponse({"paths": said}, 200, headers)

    @app.get("/{file_system}/{path:path}")
    def read(request: Request, file_system: str, path: str) -> Response:
        if refusal := lake.refusal(request):
            return refusal
        file = lake.folder / path
        if file_system != lake.file_system or not file.is_file():
            return failure(404, "BlobNotFound", "The specified blob does not exist.")
        return ranged(file.read_bytes(), request, {})

    return app


def entry(path: Path, root: Path) -> dict[str, str]:
    """A file or folder as it is listed."""
    own = {"name": str(path.relative_to(root)), "lastModified": "Mon, 01 Jan 2026 00:00:00 GMT", "etag": "0x1"}
    if path.is_dir():
        return own | {"isDirectory": "true", "contentLength": "0"}
    return own | {"contentLength": str(path.stat().st_size)}
