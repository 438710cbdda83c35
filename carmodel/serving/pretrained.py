"""Package the pretrained network of this repository as ``models:/carmodel-pretrained@champion``."""

import argparse
import json
import sys
from pathlib import Path

from mlflow import MlflowClient

from carmodel.errors import InputError
from carmodel.serving.registry import CANDIDATE, CHAMPION, PRETRAINED_NAME, set_alias, uri_of, version_for_alias
from carmodel.tracking.cache import digest_of_init
from carmodel.tracking.digests import digest_of_bytes, digest_of_sources
from carmodel.tracking.paths import PRETRAINED

DIGEST_TAG = "pretrained_digest"


def package_pretrained() -> str:
    """Log and register the network of ``pretrained/``, once per version of its files and of the code, and return its URI.

    Its accuracy is that of its model card. Nothing is measured here, since the photos are not part of this repository.

    Raises:
        InputError: the files are missing.
    """
    facts_file = PRETRAINED.with_suffix(".json")
    if not PRETRAINED.is_file() or not facts_file.is_file():
        raise InputError(f"{PRETRAINED} or {facts_file.name} is missing; clone the repository again")
    # The registered model contains the code that packaged it, so new code packages it again.
    code = [digest_of_sources(Path(__file__).with_name(name)) for name in ("pretrained_files.py", "model_code.py")]
    client, digest = MlflowClient(), digest_of_bytes(" ".join([digest_of_init("pretrained"), *code]).encode())
    if uri := _packaged(client, digest):
        return uri
    print("pretrained: packaging takes about a minute", file=sys.stderr, flush=True)
    from carmodel.serving.pretrained_files import package  # imports TensorFlow

    version = package(json.loads(facts_file.read_text()))
    client.set_model_version_tag(PRETRAINED_NAME, version, DIGEST_TAG, digest)
    for alias in (CANDIDATE, CHAMPION):
        set_alias(client, PRETRAINED_NAME, alias, version)
    return uri_of(client, PRETRAINED_NAME, CHAMPION) or f"models:/{PRETRAINED_NAME}/{version}"


def _packaged(client: MlflowClient, digest: str) -> str | None:
    """Return the URI of the champion if it was packaged from files with this digest."""
    if not client.search_registered_models(f"name = '{PRETRAINED_NAME}'"):
        return None
    champion = version_for_alias(client, PRETRAINED_NAME, CHAMPION)
    return uri_of(client, PRETRAINED_NAME, CHAMPION) if champion and champion.tags.get(DIGEST_TAG) == digest else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--export", metavar="MODEL", help="first replace the files of pretrained/ by this classifier's")
    model = parser.parse_args().export
    try:
        if model:
            from carmodel.serving.pretrained_files import export

            export(model)
        print(
            f"\n  packaged: {package_pretrained()}\n  serve it: make serve MODEL=models:/{PRETRAINED_NAME}@{CHAMPION}"
        )
    except InputError as error:
        parser.error(str(error))
