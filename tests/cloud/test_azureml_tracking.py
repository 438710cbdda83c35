"""`main` tracked in an Azure ML workspace, with the real clients, under the service's own names on this machine."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from carmodel.parameters import STEPS
from tests.cloud import leaks
from tests.cloud.azureml_cloud import Azure, azure
from tests.cloud.azureml_tracking import MANAGEMENT
from tests.cloud.mlflow_server import Server
from tests.cloud.stand_in import Authority
from tests.project import Project, check_runs, finished_runs, happened

pytestmark = pytest.mark.slow

EXPERIMENT, MODEL = "cars", "carmodel-demo"


@dataclass
class Tracked:
    """A workspace of its own, and a project that tracks to it."""

    cloud: Azure
    project: Project

    @property
    def client(self) -> MlflowClient:
        """The `mlflow server` behind the workspace: its state."""
        return MlflowClient(self.cloud.workspace.server)

    def runs(self) -> dict[str, Run]:
        return finished_runs(self.client, EXPERIMENT)

    def mlflow(self, method: str) -> str:
        """Pattern of the path of a call of MLflow's API."""
        return f"^/mlflow/v2.0{self.cloud.workspace.scope}/api/2.0/mlflow/{method}$"


@pytest.fixture(scope="module")
def tracked(
    authority: Authority, server: Server, commands: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tracked]:
    folder = tmp_path_factory.mktemp("azureml")
    with azure(folder, server, authority, commands) as cloud:
        yield Tracked(cloud, Project(folder / "project", cloud.environment))


@pytest.fixture(scope="module")
def stopped(tracked: Tracked) -> str:
    """What `main` prints when its token is refused in the middle: at the search for a finished second step."""
    region = tracked.cloud.region
    region.fail("POST", tracked.mlflow("runs/search"), 200, body=b"{}")  # main: no runs of killed processes
    region.fail("POST", tracked.mlflow("runs/search"), 200, body=b"{}")  # preprocess: does not run
    region.fail("POST", tracked.mlflow("runs/search"), 200, body=b"{}")  # preprocess: nothing to reuse
    region.fail("POST", tracked.mlflow("runs/search"), 401, body=b"")
    done = tracked.project.main(EXPERIMENT)
    assert done.returncode == 1
    return done.stderr


@pytest.fixture(scope="module")
def finished(tracked: Tracked, stopped: str) -> dict[str, str]:
    """What happened to each step when the same command was given again, while service and network had faults."""
    region, storage = tracked.cloud.region, tracked.cloud.storage
    region.fail("POST", tracked.mlflow("runs/log-batch"), 429, headers={"Retry-After": "1"}, body=b"{}")
    region.fail("GET", tracked.mlflow("runs/get"), 500)
    region.fail("POST", tracked.mlflow("runs/set-tag"), 0)
    region.fail("POST", "/artifacts/batch/metadata$", 503)
    storage.fail("PUT", "/augmented/augmented.h5$", 0)
    done = tracked.project.main(EXPERIMENT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not any(fault.times for fault in (*region.faults, *storage.faults))
    assert f"make serve MODEL=models:/{MODEL}/1\n" in done.stdout
    return happened(done.stdout)


def test_a_refused_token_stops_main_with_what_to_do(stopped: str) -> None:
    said = stopped[stopped.index("main: stopped") :]
    assert "answered 401" in said
    assert "sign in again" in said
    assert "run the same command again: finished steps are reused" in said
    assert "Traceback" not in said.partition("ERROR mlflow")[0]


def test_the_same_command_again_finishes_through_faults(tracked: Tracked, finished: dict[str, str]) -> None:
    assert finished == dict.fromkeys(STEPS, "ran") | {"preprocess": "reused"}
    assert len(tracked.cloud.storage.seen("PUT", "/augmented/augmented.h5$")) == 2


@pytest.mark.usefixtures("finished")
def test_the_workspace_has_runs_with_parameters_metrics_and_lineage(tracked: Tracked) -> None:
    check_runs(tracked.runs())
    # Autologging's metrics come in the service's own asynchronous batches.
    assert tracked.cloud.region.seen("POST", "/api/2.0/preview/mlflow/runs/log-batch-async$")
    assert tracked.cloud.region.seen("GET", "/api/2.0/preview/mlflow/runs/get-run-data-status$")


@pytest.mark.usefixtures("finished")
def test_the_storage_account_has_every_artifact(tracked: Tracked) -> None:
    runs, workspace = tracked.runs(), tracked.cloud.workspace
    expected = {
        "preprocess": ["data/train.h5", "data/test.h5", "contact_sheet.png", "data_report.json"],
        "augment": ["augmented/augmented.h5", "before_after.png"],
        "train": ["model/MLmodel", "model/data/model.keras", "training_curves.png"],
        "evaluate": ["report/metrics.json", "report/mistakes.png"],
        "package_pyfunc": ["classifier/MLmodel", "classifier/artifacts/model.keras", "examples/0.jpg"],
        "main": ["summary.txt"],
    }
    for name, paths in expected.items():
        known = workspace.artifacts[runs[name].info.run_id]
        assert set(paths) <= known.keys(), name
        assert all(workspace.blobs.content[blob] for path, blob in known.items() if not path.endswith("__init__.py"))
    report = workspace.artifacts[runs["evaluate"].info.run_id]["report/metrics.json"]
    assert json.loads(workspace.blobs.content[report])["top1"] == runs["evaluate"].data.metrics["test_top1"]


@pytest.mark.usefixtures("finished")
def test_the_registry_names_versions_by_tags_for_lack_of_aliases(tracked: Tracked) -> None:
    version, run = tracked.client.get_model_version(MODEL, "1"), tracked.runs()["package_pyfunc"]
    assert version.tags.keys() >= {"alias.candidate", "alias.champion", "test_top1", "test_store"}
    assert version.run_id == run.info.run_id
    address = tracked.cloud.workspace.artifact_uri(run.info.experiment_id, run.info.run_id)
    assert version.source == f"{address}/classifier"
    assert "no aliases, so version 1 gets the tag alias.champion" in tracked.project.said
    assert "no logged models; the model is an artifact of the run" in tracked.project.said


@pytest.mark.usefixtures("finished")
def test_the_registered_classifier_answers_by_its_version_and_not_by_an_alias(tracked: Tracked) -> None:
    program = f"""
import mlflow
from carmodel.errors import InputError
from carmodel.tracking.cache import digest_of_input
model = mlflow.pyfunc.load_model("models:/{MODEL}/1")
(answer,) = model.predict(model.input_example.head(1)).to_dict("records")
print("answered", answer["label"], answer["error"])
try:
    digest_of_input("models:/{MODEL}@champion")
except InputError as error:
    print("refused", error)
"""
    done = tracked.project.run("python", "-c", program)
    assert re.search(r"answered Synthetic \w+ 2020 None", done.stdout), done.stdout[-1000:] + done.stderr[-3000:]
    assert "refused models:/carmodel-demo@champion: cannot be read: this registry has no aliases" in done.stdout


@pytest.mark.parametrize(
    ("asked", "fault", "said"),
    [
        ("region POST runs/log-batch", {"status": 500, "times": 9}, "answered 500"),
        ("region POST runs/log-batch", {"status": 0, "times": 9}, "cannot be reached"),
        ("storage PUT contact_sheet.png", {"status": 403}, "answered 403"),
    ],
)
@pytest.mark.usefixtures("finished")
def test_a_refusal_of_the_service_is_explained(tracked: Tracked, asked: str, fault: dict, said: str) -> None:
    where, method, path = asked.split()
    failing = getattr(tracked.cloud, where).fail(method, path, **fault)
    done = tracked.project.preprocess(MLFLOW_EXPERIMENT_NAME="faults")
    failing.times = 0
    assert done.returncode == 1, done.stderr[-3000:]
    assert "preprocess: stopped: azureml://" in done.stderr
    assert said in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("finished")
def test_a_wrong_address_or_secret_is_explained(tracked: Tracked) -> None:
    workspace = tracked.cloud.workspace
    done = tracked.project.preprocess(MLFLOW_TRACKING_URI=workspace.uri.replace(workspace.name, "no-such-workspace"))
    assert done.returncode == 1
    assert "answered 404" in done.stderr and "check MLFLOW_TRACKING_URI" in done.stderr
    assert "Traceback" not in done.stderr
    done = tracked.project.preprocess(AZURE_CLIENT_SECRET="wrong")
    assert done.returncode == 1
    assert "answered 401" in done.stderr
    assert "Traceback" not in done.stderr.partition("preprocess: stopped")[2]


@pytest.mark.usefixtures("finished")
def test_the_token_of_a_job_is_renewed_before_it_expires(tracked: Tracked) -> None:
    experiment = tracked.client.get_experiment_by_name(EXPERIMENT).experiment_id
    run = tracked.client.create_run(experiment, run_name="job").info.run_id
    first = tracked.cloud.workspace.identity.issue(MANAGEMENT, lifetime=60)
    job = {"MLFLOW_TRACKING_TOKEN": first, "MLFLOW_RUN_ID": run, "MLFLOW_EXPERIMENT_ID": experiment}
    started = len(tracked.cloud.region.sent)
    done = tracked.project.preprocess(AZURE_CLIENT_SECRET=None, **job)
    assert done.returncode == 0, done.stderr[-3000:]
    assert tracked.client.get_run(run).info.status == "FINISHED"
    renewal, *asked = tracked.cloud.region.sent[started:]
    assert re.search(rf"/experimentids/{experiment}/runs/{run}/token$", renewal.path)
    used = {sent.headers["authorization"].removeprefix("Bearer ") for sent in asked}
    assert used <= tracked.cloud.workspace.identity.tokens.keys() - {first}


@pytest.mark.usefixtures("finished")
def test_an_azure_ml_compute_s_managed_identity_is_used(tracked: Tracked) -> None:
    login, asked = tracked.cloud.login, len(tracked.cloud.login.sent)
    own = {"MSI_ENDPOINT": f"{login.url}/MSI/token", "MSI_SECRET": tracked.cloud.workspace.identity.secret}
    done = tracked.project.preprocess(MLFLOW_EXPERIMENT_NAME="compute", AZURE_CLIENT_SECRET=None, **own)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {sent.path for sent in login.sent[asked:]} == {"/MSI/token"}


@pytest.mark.usefixtures("finished")
def test_no_credential_leaks_and_only_the_services_are_asked(tracked: Tracked, server: Server) -> None:
    cloud, identity, blobs = tracked.cloud, tracked.cloud.workspace.identity, tracked.cloud.workspace.blobs
    assert len(identity.tokens) > 5
    places = [("output", tracked.project.said.encode())]
    places += leaks.requests(cloud.region.sent)
    places += leaks.requests(cloud.storage.sent, query=False)  # the signature is in the query
    places += leaks.requests(cloud.login.sent, body=False)  # the secret is in the body
    places += [*blobs.content.items(), *leaks.files(tracked.project.folder), *leaks.files(server.folder)]
    assert leaks.leaked([identity.secret, leaks.begin(identity.tokens), leaks.begin(blobs.grants)], places) == []
    assert cloud.proxy.refused == []
