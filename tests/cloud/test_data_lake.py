"""Photos in ADLS Gen2 by ``abfss://``: MLflow and azure-storage-file-datalake read them with the environment's identity."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import mlflow
import pytest
from azure.storage.filedatalake import ExponentialRetry

from carmodel.data.store import open_store
from carmodel.errors import InputError
from carmodel.tracking.artifacts import fetch
from carmodel.tracking.cache import digest_of_input
from carmodel.tracking.digests import digest_of_path
from tests.cloud.data_lake import Lake, lake_service
from tests.cloud.identity import Identity, login_service
from tests.cloud.mlflow_server import Server
from tests.cloud.proxy import Proxy, lead
from tests.cloud.stand_in import Authority, Wire, serve
from tests.project import client_here, environment


class Storage(NamedTuple):
    """A running storage account: what is in it, its two hosts, and the environment of a client that may read it."""

    lake: Lake
    dfs: Wire
    blob: Wire
    proxy: Proxy
    environment: dict[str, str]


@pytest.fixture(scope="module")
def storage(sample: Path, authority: Authority, commands: str, server: Server) -> Iterator[Storage]:
    identity = Identity()
    lake = Lake(identity, sample.parent)
    with ExitStack() as stack:
        dfs, blob = (stack.enter_context(serve(lake_service(lake), authority)) for _ in range(2))
        login = stack.enter_context(serve(login_service(identity), authority))
        hosts = {r"carphotos\.dfs\.core\.windows\.net": dfs, r"carphotos\.blob\.core\.windows\.net": blob}
        proxy = stack.enter_context(lead(hosts | {r"login\.microsoftonline\.com": login}))
        own = proxy.environment | authority.environment | identity.environment | {"MLFLOW_TRACKING_URI": server.url}
        yield Storage(lake, dfs, blob, proxy, environment(commands, **own))
        assert proxy.refused == []


@pytest.fixture
def signed_in(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """This process as a client of the account, which holds the empty folder `tmp_path`."""
    monkeypatch.setattr(storage.lake, "folder", tmp_path)
    for wire in (storage.dfs, storage.blob):
        wire.sent.clear()
        wire.faults.clear()
    with client_here(storage.environment):
        yield storage


@pytest.mark.slow
def test_preprocess_makes_the_same_store_of_photos_there_and_here(storage: Storage, sample: Path) -> None:
    client, said, stores = mlflow.MlflowClient(storage.environment["MLFLOW_TRACKING_URI"]), "", []
    for uri in (f"{storage.lake.uri}/{sample.name}", str(sample)):
        command = ["python", "-m", "steps.preprocess", "--data_uri", uri, "--image_size", "16"]
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, env=storage.environment, check=False, **both)
        assert done.returncode == 0, done.stdout
        said += done.stdout
        (run,) = client.search_runs(["0"], f"params.data_uri = '{uri}'")
        stores.append(open_store(Path(client.download_artifacts(run.info.run_id, "data"), "train.h5")))
    there, here = stores
    assert len(there) == len(here) and (there.take(range(len(there))) == here.take(range(len(here)))).all()
    assert not [secret for secret in (storage.lake.identity.secret, *storage.lake.identity.tokens) if secret in said]


def test_the_digest_covers_all_pages_of_the_listing(signed_in: Storage, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.jpg").write_bytes(b"x" * (number + 1))
    before = digest_of_input(signed_in.lake.uri)
    assert len(signed_in.dfs.seen("GET", "^/photos$")) == 3
    assert digest_of_input(signed_in.lake.uri) == before
    (tmp_path / "20.jpg").write_bytes(b"x")
    assert digest_of_input(signed_in.lake.uri) != before


def test_a_busy_server_is_asked_again(signed_in: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The client waits for 15 seconds, whatever Retry-After says.
    monkeypatch.setattr(ExponentialRetry, "get_backoff_time", lambda *_: 0.1)
    (tmp_path / "cars").mkdir()
    (tmp_path / "cars" / "one.jpg").write_bytes(b"a photo")
    signed_in.blob.fail("GET", "one.jpg", 503, headers={"x-ms-error-code": "ServerBusy"})
    assert digest_of_path(fetch(f"{signed_in.lake.uri}/cars")) == digest_of_path(tmp_path / "cars")
    assert len(signed_in.blob.seen("GET", "one.jpg")) == 2


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "InvalidAuthenticationInfo", "Server failed to authenticate the request"),
        (403, "AuthorizationPermissionMismatch", "This request is not authorized to perform this operation"),
        (404, "FilesystemNotFound", "The specified filesystem does not exist"),
    ],
)
def test_a_refusal_is_raised_with_the_service_s_message(
    signed_in: Storage, status: int, code: str, message: str
) -> None:
    body = f'{{"error": {{"code": "{code}", "message": "{message}"}}}}'.encode()
    signed_in.dfs.fail("GET", "^/photos$", status, headers={"x-ms-error-code": code}, body=body, times=9)
    for read in (fetch, digest_of_input):
        with pytest.raises(InputError) as error:
            read(f"{signed_in.lake.uri}/cars")
        assert message in str(error.value) and str(error.value).startswith(f"{signed_in.lake.uri}/cars: cannot be ")


def test_a_whole_container_is_refused(signed_in: Storage, tmp_path: Path) -> None:
    (tmp_path / "one.jpg").write_bytes(b"a photo")
    with pytest.raises(InputError, match="cannot read a whole container: give a directory in it"):
        fetch(signed_in.lake.uri)
