"""Where a secret has got to: in what a service received, what was printed, and files, plain or in Base64 or quoted."""

import base64
import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

from tests.cloud.stand_in import Sent


def disguises(secret: str) -> list[bytes]:
    """The forms in which a secret is looked for: as it is, quoted, and inside Base64 at any of its three alignments."""
    plain = secret.encode()
    inside = []
    for shift in range(3):
        # Without the characters that depend on what comes before and after: one holds six bits.
        whole = slice(-(-shift * 8 // 6), (shift + len(plain)) * 8 // 6)
        inside.append(base64.b64encode(b"\0" * shift + plain)[whole])
    return [plain, quote(secret, safe="").encode(), *inside]


def begin(secrets: Iterable[str]) -> str:
    """How all of many secrets begin: to look for that finds them all."""
    begin = os.path.commonprefix(list(secrets))  # noqa: RUF071
    assert len(begin) >= 12, "not distinctive"
    return begin


def leaked(secrets: Iterable[str], places: Iterable[tuple[str, bytes]]) -> list[str]:
    """Names of the places that hold one of the secrets; archives are looked into."""
    forms = [form for secret in secrets for form in disguises(secret)]
    return [place for place, content in _unpacked(places) if any(form in content for form in forms)]


def requests(sent: Iterable[Sent], *, body: bool = True, query: bool = True) -> Iterator[tuple[str, bytes]]:
    """What requests carry beside their ``Authorization``; without the body or query that has to hold a credential."""
    for one in sent:
        headers = {name: value for name, value in one.headers.items() if name not in ("authorization", "secret")}
        carried = f"{one.path} {headers} {one.query if query else ''}".encode() + (one.body if body else b"")
        yield f"{one.method} {one.path}", carried


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """The files at any depth of a folder."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield str(path), path.read_bytes()


def _unpacked(places: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    for name, content in places:
        yield name, content
        if content.startswith(b"PK\3\4"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                yield from _unpacked((f"{name}:{inner}", archive.read(inner)) for inner in archive.namelist())
