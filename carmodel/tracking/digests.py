"""Digests of data and of source code, which show whether the inputs of a step have changed."""

import ast
import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from threading import Lock

from carmodel.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
BYTECODE = "__pycache__"

# In Python 3.11, `ast.parse` may fail while several threads call it (https://github.com/python/cpython/issues/106905).
_parsing = Lock()


def digest_of_path(path: Path) -> str:
    """Return the digest of a file's contents, or of the names and contents of a directory, without Python's bytecode.

    Links are followed, as readers do.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(_files(path)) if path.is_dir() else [path]:
        digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files at any depth. Enter a directory once, even if several links lead to it."""
    entered = {folder.resolve()}
    for here, folders, names in os.walk(folder, followlinks=True):
        new = [name for name in sorted(folders) if name != BYTECODE and Path(here, name).resolve() not in entered]
        entered |= {Path(here, name).resolve() for name in new}
        folders[:] = new
        yield from (file for name in names if (file := Path(here, name)).is_file())


def digest_of_sources(file: Path) -> str:
    """Return the digest of a source file and of all project files that it imports."""
    return digest_of_bytes(
        "\n".join(f"{os.path.relpath(p, ROOT)} {digest_of_path(p)}" for p in sources_of(file)).encode()
    )


def sources_of(file: Path) -> list[Path]:
    """Return a source file and the project files that it imports, directly or indirectly, with their packages' static files.

    Raises:
        InputError: a file has a syntax error. The message names the file and the line.
    """
    found, pending = set(), {file}
    while pending:
        source = pending.pop()
        found.add(source)
        pending |= _imports(source, source.read_text()) - found
    return sorted(found | {static for source in found for static in source.parent.glob("static/*")})


@lru_cache(maxsize=1024)  # the steps share most of their files
def _imports(source: Path, text: str) -> frozenset[Path]:
    """Return the project files that a source file with this text may import, and the packages that contain them."""
    try:
        with _parsing:
            tree = ast.parse(text)
    except SyntaxError as error:
        raise InputError(f"{source}, line {error.lineno}: {error.msg}: {(error.text or '').strip()}") from None
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = source.parents[node.level - 1] if node.level else ROOT
            package = base.joinpath(*(node.module or "").split("."))
            modules += [package, *(package / alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules += [ROOT.joinpath(*alias.name.split(".")) for alias in node.names]
    files = set()
    for module in modules:
        folders = [folder for folder in (module, *module.parents) if folder.is_relative_to(ROOT)]
        files |= {module.with_name(f"{module.name}.py"), *(folder / "__init__.py" for folder in folders)}
    return frozenset(file for file in files if file.is_file())


def digest_of_bytes(data: bytes) -> str:
    """Return the digest of bytes, in hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()
