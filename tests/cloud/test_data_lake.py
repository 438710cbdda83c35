"""Photos in ADLS Gen2 by ``abfss://``: MLflow and azure-storage-file-datalake read them with the environment's identity."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import mlflow
import pytest

from carmodel.data.store import open_store
from carmodel.errors import InputError
from carmodel.tracking.artifacts import fetch
from carmodel.tracking.cache import digest_of_input
from carmodel.tracking.digests import digest_of_path
from tests.cloud.data_lake import Lake, lake_service
from tests.cloud.identity import Identity, login_service
from tests.cloud.project import Project
from tests.cloud.proxy import Proxy, lead
from tests.cloud.stand_in import Authority, Wire, serve


class Storage(NamedTuple):
    """A running storage account: what is in it, its two hosts, and the environment of a client that may read it."""

    lake: Lake
    dfs: Wire
    blob: Wire
    proxy: Proxy
    environment: dict[str, str]


@pytest.fixture
def storage(sample: Path, authority: Authority) -> Iterator[Storage]:
    identity = Identity()
    lake = Lake(identity, sample.parent)
    with ExitStack() as stack:
        dfs, blob = (stack.enter_context(serve(lake_service(lake), authority)) for _ in range(2))
        login = stack.enter_context(serve(login_service(identity), authority))
        hosts = {r"carphotos\.dfs\.core\.windows\.net": dfs, r"carphotos\.blob\.core\.windows\.net": blob}
        proxy = stack.enter_context(lead(hosts | {r"login\.microsoftonline\.com": login}))
        yield Storage(lake, dfs, blob, proxy, proxy.environment | authority.environment | identity.environment)
        assert proxy.refused == []


@pytest.fixture
def signed_in(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """This process as a client of the account."""
    for name, value in storage.environment.items():
        monkeypatch.setenv(name, value)
    return storage


@pytest.mark.slow
def test_preprocess_reads_the_photos_and_makes_the_store_that_it_makes_of_the_folder(
    storage: Storage, sample: Path, tmp_path: Path
) -> None:
    project = Project(tmp_path, {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"})
    addresses = {"there": f"{storage.lake.uri}/{sample.name}", "here": str(sample)}
    for name, data_uri in addresses.items():
        words = ["--data_uri", data_uri, "--image_size", "16"]
        given = storage.environment if name == "there" else {}
        done = project.run("python", "-m", "steps.preprocess", *words, **given)
        assert done.returncode == 0, done.stdout + done.stderr
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = {run.data.params["data_uri"]: run for run in client.search_runs(["0"])}
    folders = [Path(client.download_artifacts(runs[uri].info.run_id, "data")) for uri in addresses.values()]
    there, here = (open_store(folder / "train.h5") for folder in folders)
    assert len(there) == len(here) and (there.take(range(len(there))) == here.take(range(len(here)))).all()
    assert storage.lake.identity.secret not in project.said
    assert not [token for token in storage.lake.identity.tokens if token in project.said]


def test_the_listing_goes_over_its_pages_and_tells_when_the_photos_change(signed_in: Storage, tmp_path: Path) -> None:
    lake = signed_in.lake
    lake.folder = tmp_path
    for number in range(20):
        (tmp_path / f"{number}.jpg").write_bytes(b"x" * (number + 1))
    before = digest_of_input(lake.uri)
    assert len(signed_in.dfs.seen("GET", "^/photos$")) == 3
    assert digest_of_input(lake.uri) == before
    (tmp_path / "20.jpg").write_bytes(b"x")
    assert digest_of_input(lake.uri) != before


@pytest.mark.slow  # the client waits a quarter of a minute, whatever Retry-After says
def test_a_busy_server_is_asked_again(signed_in: Storage, tmp_path: Path) -> None:
    lake = signed_in.lake
    lake.folder = tmp_path
    (tmp_path / "cars").mkdir()
    (tmp_path / "cars" / "one.jpg").write_bytes(b"a photo")
    signed_in.blob.fail("GET", "one.jpg", 503, headers={"x-ms-error-code": "ServerBusy"})
    assert digest_of_path(fetch(f"{lake.uri}/cars")) == digest_of_path(tmp_path / "cars")
    assert len(signed_in.blob.seen("GET", "one.jpg")) == 2


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "InvalidAuthenticationInfo", "Server failed to authenticate the request"),
        (403, "AuthorizationPermissionMismatch", "This request is not authorized to perform this operation"),
        (404, "FilesystemNotFound", "The specified filesystem does not exist"),
    ],
)
def test_what_does_not_pass_is_said_in_the_service_s_words(
    signed_in: Storage, status: int, code: str, message: str
) -> None:
    body = f'{{"error": {{"code": "{code}", "message": "{message}"}}}}'.encode()
    signed_in.dfs.fail("GET", "^/photos$", status, headers={"x-ms-error-code": code}, body=body, times=9)
    for read in (fetch, digest_of_input):
        with pytest.raises(InputError) as error:
            read(f"{signed_in.lake.uri}/cars")
        assert message in str(error.value) and str(error.value).startswith(f"{signed_in.lake.uri}/cars: cannot be ")


def test_a_whole_container_is_refused_since_the_client_reads_folders_alone(signed_in: Storage, tmp_path: Path) -> None:
    signed_in.lake.folder = tmp_path
    (tmp_path / "one.jpg").write_bytes(b"a photo")
    with pytest.raises(InputError, match="cannot read a whole container: give a directory in it"):
        fetch(signed_in.lake.uri)
