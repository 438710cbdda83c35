"""`main` tracked in a Databricks workspace, with the real clients, under the service's own names on this machine."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from carmodel.parameters import STEPS
from tests.cloud import leaks
from tests.cloud.blobs import Blobs, blob_service
from tests.cloud.conftest import Server
from tests.cloud.databricks_tracking import HOST, ORGANISATION, Account, databricks_service
from tests.cloud.project import Project, happened
from tests.cloud.proxy import Proxy, lead
from tests.cloud.stand_in import Authority, Wire, serve

pytestmark = pytest.mark.slow

EXPERIMENT = "/Users/someone@example.com/cars"
MODEL = "main.cars.carmodel"


@dataclass
class Cloud:
    """The stand-ins, and a project that tracks to them."""

    account: Account
    workspace: Wire
    storage: Wire
    proxy: Proxy
    project: Project
    server: Path

    @property
    def client(self) -> MlflowClient:
        """The `mlflow server` behind the stand-in: its state."""
        return MlflowClient(self.account.server)

    def runs(self) -> dict[str, Run]:
        """The first FINISHED run of each name."""
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        assert experiment
        runs = self.client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
        return {run.info.run_name or "": run for run in runs}

    def files(self, folder: str) -> set[str]:
        """Paths in the storage under a folder of the internal store."""
        root = f"root/databricks/mlflow-tracking/{folder}/artifacts/"
        return {name.removeprefix(root) for name in self.account.blobs.content if name.startswith(root)}


@pytest.fixture(scope="module")
def cloud(authority: Authority, tracking_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("databricks") / "project"
    with ExitStack() as stack:
        account = Account(tracking_server.url, Blobs())
        workspace = stack.enter_context(serve(databricks_service(account), authority))
        storage = stack.enter_context(serve(blob_service(account.blobs), authority))
        stand_ins = {re.escape(HOST): workspace, r".*\.blob\.core\.windows\.net": storage}
        proxy = stack.enter_context(lead(stand_ins))
        variables = {
            "MLFLOW_TRACKING_URI": "databricks",
            "DATABRICKS_HOST": f"https://{HOST}",
            "DATABRICKS_TOKEN": account.token,
            "MLFLOW_DATABRICKS_ENDPOINT_HTTP_RETRY_TIMEOUT": "5",
        }
        project = Project(folder, variables | authority.environment | proxy.environment)
        yield Cloud(account, workspace, storage, proxy, project, tracking_server.folder)


@pytest.fixture(scope="module")
def stopped(cloud: Cloud) -> str:
    """What `main` says when its token is refused in the middle: when it looks for a finished second step."""
    cloud.workspace.fail("POST", "/runs/search$", 200, body=b"{}")  # preprocess: nothing to reuse
    said = {"error_code": "PERMISSION_DENIED", "message": "Invalid access token."}
    cloud.workspace.fail("POST", "/runs/search$", 403, body=json.dumps(said).encode())
    done = cloud.project.main(EXPERIMENT, package_pyfunc__registered_model_name=MODEL)
    assert done.returncode == 1
    return done.stderr


@pytest.fixture(scope="module")
def finished(cloud: Cloud, stopped: str) -> dict[str, str]:
    """What happened to each step when the same command was given again, on a service and a network that hiccup."""
    cloud.workspace.fail("POST", "/runs/log-batch$", 429, headers={"Retry-After": "1"}, body=b"{}")
    cloud.workspace.fail("POST", "/artifacts/credentials-for-upload$", 503, body=b"{}")
    cloud.workspace.fail("GET", "/runs/get$", 0)
    cloud.storage.fail("PUT", "/MLmodel$", 0)
    cloud.storage.fail("PUT", "/data/model.keras$", 403)  # the signature has expired: another is asked for
    done = cloud.project.main(EXPERIMENT, package_pyfunc__registered_model_name=MODEL)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not any(fault.times for fault in (*cloud.workspace.faults, *cloud.storage.faults))
    assert f"make serve MODEL=models:/{MODEL}/" in done.stdout
    return happened(done)


def test_a_token_that_is_refused_stops_main_with_what_to_do(stopped: str) -> None:
    said = stopped[stopped.index("main: stopped") :]
    assert "databricks answered 403: Invalid access token." in said
    assert "give it a role that allows this" in said
    assert "run the same command again: finished steps are reused" in said


def test_the_same_command_again_finishes_through_hiccups(finished: dict[str, str]) -> None:
    assert finished == dict.fromkeys(STEPS, "ran") | {"preprocess": "reused"}


@pytest.mark.usefixtures("finished")
def test_the_workspace_has_the_runs_with_parameters_metrics_and_lineage(cloud: Cloud) -> None:
    runs = cloud.runs()
    assert runs.keys() == {"main", *STEPS}
    for name, settings in STEPS.items():
        assert set(settings.model_fields) <= set(runs[name].data.params), name
        assert runs[name].data.metrics["seconds"] > 0, name
        assert runs[name].data.tags["mlflow.parentRunId"], name
    assert {"loss", "accuracy", "val_loss", "images_per_second"} <= set(runs["train"].data.metrics)
    assert {"test_top1", "test_top5"} <= set(runs["evaluate"].data.metrics)


@pytest.mark.usefixtures("finished")
def test_artifacts_and_models_are_in_the_storage(cloud: Cloud) -> None:
    runs = cloud.runs()
    experiment = runs["main"].info.experiment_id
    expected = {
        "preprocess": {"data/train.h5", "data/test.h5", "contact_sheet.png"},
        "augment": {"augmented/augmented.h5", "before_after.png"},
        "train": {"training_curves.png"},
        "evaluate": {"report/metrics.json", "report/mistakes.png"},
        "package_pyfunc": {"examples/0.jpg"},
        "main": {"summary.txt"},
    }
    for name, paths in expected.items():
        assert paths <= cloud.files(f"{experiment}/{runs[name].info.run_id}"), name
    models = {model.name: model for model in cloud.client.search_logged_models([experiment])}
    assert models.keys() == {"model", "classifier"}
    for model in models.values():
        assert {"MLmodel", "requirements.txt"} <= cloud.files(f"{experiment}/logged_models/{model.model_id}")
    # The workspace's token is for the workspace alone.
    assert all("authorization" not in sent.headers for sent in cloud.storage.sent)


@pytest.mark.usefixtures("finished")
def test_unity_catalog_has_the_version_with_files_aliases_tags_and_the_run(cloud: Cloud) -> None:
    catalog, run = cloud.account.catalog, cloud.runs()["package_pyfunc"]
    version = catalog.version(MODEL, "1")
    assert {"candidate", "champion"} == catalog.models[MODEL]["aliases"].keys()
    assert {tag["key"] for tag in version["tags"]} == {"test_top1", "test_store"}
    assert (version["status"], version["run_id"]) == ("READY", run.info.run_id)
    assert version["run_tracking_server_id"] == ORGANISATION
    folder = f"catalog/Models/{MODEL.replace('.', '/')}/1"
    assert {f"{folder}/MLmodel", f"{folder}/artifacts/model.keras"} <= cloud.account.blobs.content.keys()


@pytest.mark.usefixtures("finished")
def test_the_registered_classifier_loads_by_its_alias_and_answers(cloud: Cloud) -> None:
    program = f"""
import mlflow
model = mlflow.pyfunc.load_model("models:/{MODEL}@candidate")
(answer,) = model.predict(model.input_example.head(1)).to_dict("records")
print("answered", answer["label"], answer["error"])
"""
    done = cloud.project.run("python", "-c", program)
    assert re.search(r"answered Synthetic \w+ 2020 None", done.stdout), done.stdout[-1000:] + done.stderr[-3000:]


@pytest.mark.usefixtures("finished")
def test_the_workspace_s_own_registry_has_tags_instead_of_aliases(cloud: Cloud) -> None:
    (classifier,) = cloud.client.search_logged_models([cloud.runs()["main"].info.experiment_id], "name = 'classifier'")
    program = f"""
import mlflow
from carmodel.serving.registry import uri_of, promote, register
from carmodel.tracking.artifacts import fetch, listing
client = mlflow.MlflowClient()
for accuracy in (0.5, 0.6):
    version = register("models:/{classifier.model_id}", "carmodel", accuracy, "a store")
    print(promote(client, "carmodel", version, 0.4).reason)
print(uri_of(client, "carmodel", "champion"), (fetch("models:/carmodel/2") / "MLmodel").is_file())
"""
    done = cloud.project.run("python", "-c", program, MLFLOW_REGISTRY_URI="databricks")
    assert done.stdout.splitlines()[-1] == "models:/carmodel/2 True", done.stdout[-1000:] + done.stderr[-3000:]
    tags = {number: cloud.client.get_model_version("carmodel", number).tags.keys() for number in ("1", "2")}
    assert tags == {
        "1": {"test_top1", "test_store"},
        "2": {"test_top1", "test_store", "alias.candidate", "alias.champion"},
    }
    source = cloud.client.get_model_version("carmodel", "2").source
    assert re.fullmatch(r"dbfs:/databricks/mlflow-tracking/\d+/logged_models/m-[0-9a-f]+/artifacts", source)


@pytest.mark.usefixtures("finished")
def test_artifacts_go_through_the_files_api_where_that_is_allowed_and_by_signed_addresses_elsewhere(
    cloud: Cloud,
) -> None:
    internal = "^/api/2.0/fs/files/WorkspaceInternal/Mlflow/Artifacts/"
    for path in ("/data/train.h5$", "/LoggedModels/.*/MLmodel$"):
        assert cloud.workspace.seen("PUT", internal + ".*" + path)  # refused
    for path in ("/data/train.h5$", "/logged_models/.*/MLmodel$"):
        assert cloud.storage.seen("PUT", "/databricks/mlflow-tracking/.*" + path)
    assert cloud.workspace.seen("PUT", internal + ".*/examples/0.jpg$")
    assert not cloud.storage.seen("PUT", "/databricks/mlflow-tracking/.*/examples/0.jpg$")


@pytest.mark.parametrize(
    ("asked", "fault", "said"),
    [
        ("workspace POST /runs/log-batch$", {"status": 500, "times": 9}, "answered 500"),
        ("workspace POST /runs/log-batch$", {"status": 0, "times": 99}, "cannot be reached"),
        ("storage PUT contact_sheet.png", {"status": 403, "times": 9}, "answered 403"),
    ],
)
@pytest.mark.usefixtures("finished")
def test_what_the_service_refuses_is_said_in_words_with_what_to_do(
    cloud: Cloud, asked: str, fault: dict, said: str
) -> None:
    where, method, path = asked.split()
    failing = getattr(cloud, where).fail(method, path, **fault)
    given = [f"--{name}={value}" for name, value in (("sample_classes", 2), ("sample_photos", 5), ("image_size", 16))]
    done = cloud.project.run("python", "-m", "steps.preprocess", *given, MLFLOW_EXPERIMENT_NAME=EXPERIMENT)
    failing.times = 0
    assert done.returncode == 1, done.stderr[-3000:]
    assert "preprocess: stopped: databricks" in done.stderr
    assert said in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"DATABRICKS_TOKEN": "dapi-that-has-expired"}, "answered 403: Invalid access token"),
        ({"MLFLOW_EXPERIMENT_NAME": "no-path"}, "An experiment name must be an absolute path"),
    ],
)
@pytest.mark.usefixtures("finished")
def test_a_wrong_token_or_experiment_is_said_in_words(cloud: Cloud, variables: dict[str, str], said: str) -> None:
    given = {"MLFLOW_EXPERIMENT_NAME": EXPERIMENT} | variables
    done = cloud.project.run("python", "-m", "steps.preprocess", "--image_size=16", **given)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("finished")
def test_no_credential_reaches_parameters_tags_artifacts_output_or_files(cloud: Cloud) -> None:
    blobs = cloud.account.blobs
    assert len(blobs.grants) > 20
    places = [("printed", cloud.project.said.encode())]
    places += leaks.requests(cloud.workspace.sent)
    places += leaks.requests(cloud.storage.sent, query=False)  # the signature is in the query
    places += [*blobs.content.items(), *leaks.files(cloud.project.folder), *leaks.files(cloud.server)]
    assert leaks.leaked([cloud.account.token, leaks.begin(blobs.grants)], places) == []


@pytest.mark.usefixtures("finished")
def test_nothing_but_the_services_was_asked(cloud: Cloud) -> None:
    assert cloud.proxy.refused == []
