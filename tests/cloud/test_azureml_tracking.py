"""`main` tracked in an Azure ML workspace, with the real clients, under the service's own names on this machine."""

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
from tests.cloud.azureml_tracking import MANAGEMENT, Workspace, management_service, workspace_service
from tests.cloud.blobs import Blobs, blob_service
from tests.cloud.conftest import Server
from tests.cloud.identity import Identity, login_service, managed_identity
from tests.cloud.project import Project, happened
from tests.cloud.proxy import Proxy, lead
from tests.cloud.stand_in import Authority, Wire, serve

pytestmark = pytest.mark.slow

EXPERIMENT = "cars"
MODEL = "carmodel-demo"


@dataclass
class Cloud:
    """The stand-ins, and a project that tracks to them."""

    workspace: Workspace
    region: Wire
    storage: Wire
    login: Wire
    proxy: Proxy
    project: Project
    server: Path

    @property
    def client(self) -> MlflowClient:
        """The `mlflow server` behind the stand-in: its state."""
        return MlflowClient(self.workspace.server)

    def runs(self) -> dict[str, Run]:
        """The newest FINISHED run of each name."""
        experiment = self.client.get_experiment_by_name(EXPERIMENT)
        assert experiment
        runs = self.client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'")
        return {run.info.run_name or "": run for run in reversed(runs)}

    def mlflow(self, method: str) -> str:
        """Pattern of the path of a call of MLflow's API."""
        return f"^/mlflow/v2.0{self.workspace.scope}/api/2.0/mlflow/{method}$"


@pytest.fixture(scope="module")
def cloud(authority: Authority, tracking_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("azureml") / "project"
    with ExitStack() as stack:
        workspace = Workspace(tracking_server.url, Identity(), Blobs())
        region = stack.enter_context(serve(workspace_service(workspace), authority))
        storage = stack.enter_context(serve(blob_service(workspace.blobs), authority))
        login = stack.enter_context(serve(login_service(workspace.identity), authority))
        management = stack.enter_context(serve(management_service(), authority))
        stand_ins = {
            r".*\.api\.azureml\.ms": region,
            re.escape(f"{workspace.blobs.account}.blob.core.windows.net"): storage,
            r"login\.microsoftonline\.com": login,
            r"management\.azure\.com": management,
        }
        proxy = stack.enter_context(lead(stand_ins))
        environment = {"MLFLOW_TRACKING_URI": workspace.uri} | workspace.identity.environment
        project = Project(folder, environment | authority.environment | proxy.environment)
        yield Cloud(workspace, region, storage, login, proxy, project, tracking_server.folder)


@pytest.fixture(scope="module")
def stopped(cloud: Cloud) -> str:
    """What `main` says when its token is refused in the middle: at the parameters of the second step."""
    cloud.region.fail("POST", cloud.mlflow("runs/search"), 200, body=b"{}")  # preprocess: nothing to reuse
    cloud.region.fail("POST", cloud.mlflow("runs/search"), 401, body=b"")
    done = cloud.project.main(EXPERIMENT)
    assert done.returncode == 1
    return done.stderr


@pytest.fixture(scope="module")
def finished(cloud: Cloud, stopped: str) -> dict[str, str]:
    """What happened to each step when the same command was given again, on a service and a network that hiccup."""
    wire, storage = cloud.region, cloud.storage
    wire.fail("POST", cloud.mlflow("runs/log-batch"), 429, headers={"Retry-After": "1"}, body=b"{}")
    wire.fail("GET", cloud.mlflow("runs/get"), 500)
    wire.fail("POST", cloud.mlflow("runs/set-tag"), 0)
    wire.fail("POST", "/artifacts/batch/metadata$", 503)
    storage.fail("PUT", "/augmented/augmented.h5$", 0)
    done = cloud.project.main(EXPERIMENT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert not any(fault.times for fault in (*wire.faults, *storage.faults))
    return happened(done)


def test_a_token_that_is_refused_stops_main_with_what_to_do(cloud: Cloud, stopped: str) -> None:
    said = stopped[stopped.index("main: stopped") :]
    assert "answered 401" in said
    assert "sign in again" in said
    assert "run the same command again: finished steps are reused" in said
    assert "Traceback" not in said.partition("ERROR mlflow")[0]


def test_the_same_command_again_finishes_through_hiccups(cloud: Cloud, finished: dict[str, str]) -> None:
    assert finished == dict.fromkeys(STEPS, "ran") | {"preprocess": "reused"}
    for path, times in (("runs/log-batch", 1), ("runs/get", 1), ("runs/set-tag", 1)):
        assert len(cloud.region.seen("GET" if path == "runs/get" else "POST", cloud.mlflow(path))) > times
    assert len(cloud.storage.seen("PUT", "/augmented/augmented.h5$")) == 2


@pytest.mark.usefixtures("finished")
def test_once_more_everything_is_reused(cloud: Cloud) -> None:
    done = cloud.project.main(EXPERIMENT)
    assert happened(done) == dict.fromkeys(STEPS, "reused")
    assert f"make serve MODEL=models:/{MODEL}/1\n" in done.stdout


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
    # Autologging's metrics come in the service's own asynchronous batches.
    assert cloud.region.seen("POST", "/api/2.0/preview/mlflow/runs/log-batch-async$")
    assert cloud.region.seen("GET", "/api/2.0/preview/mlflow/runs/get-run-data-status$")


@pytest.mark.usefixtures("finished")
def test_the_storage_account_has_every_artifact_byte_for_byte(cloud: Cloud) -> None:
    runs, content = cloud.runs(), cloud.workspace.blobs.content
    expected = {
        "preprocess": ["data/train.h5", "data/test.h5", "contact_sheet.png", "data_report.json"],
        "augment": ["augmented/augmented.h5", "before_after.png"],
        "train": ["model/MLmodel", "model/data/model.keras", "training_curves.png"],
        "evaluate": ["report/metrics.json", "report/mistakes.png"],
        "package_pyfunc": ["classifier/MLmodel", "classifier/artifacts/model.keras", "examples/0.jpg"],
        "main": ["summary.txt"],
    }
    for name, paths in expected.items():
        known = cloud.workspace.artifacts[runs[name].info.run_id]
        assert set(paths) <= known.keys(), name
        assert all(content[blob] for path, blob in known.items() if not path.endswith("__init__.py")), name
    top1 = json.loads(content[cloud.workspace.artifacts[runs["evaluate"].info.run_id]["report/metrics.json"]])["top1"]
    assert top1 == runs["evaluate"].data.metrics["test_top1"]


@pytest.mark.usefixtures("finished")
def test_the_registry_names_the_version_by_tags_since_the_service_has_no_aliases(cloud: Cloud) -> None:
    version = cloud.client.get_model_version(MODEL, "1")
    run = cloud.runs()["package_pyfunc"]
    assert version.tags.keys() >= {"alias.candidate", "alias.champion", "test_top1", "test_store"}
    assert version.run_id == run.info.run_id
    experiment = run.info.experiment_id
    assert version.source == f"{cloud.workspace.artifact_uri(experiment, run.info.run_id)}/classifier"
    assert "no aliases: version 1 gets the tag alias.champion" in cloud.project.said
    assert "no logged models: kept as artifacts of the run" in cloud.project.said


@pytest.mark.usefixtures("finished")
def test_the_registered_classifier_loads_and_answers_by_its_version_and_an_alias_is_refused_in_words(
    cloud: Cloud,
) -> None:
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
    done = cloud.project.run("python", "-c", program)
    assert re.search(r"answered Synthetic \w+ 2020 None", done.stdout), done.stdout[-1000:] + done.stderr[-3000:]
    assert "refused models:/carmodel-demo@champion: can't be read: this registry has no aliases" in done.stdout


@pytest.mark.parametrize(
    ("asked", "fault", "said"),
    [
        ("region POST runs/log-batch", {"status": 403, "body": b""}, "answered 403"),
        ("region POST runs/log-batch", {"status": 500, "times": 9}, "answered 500"),
        ("region POST runs/log-batch", {"status": 0, "times": 9}, "cannot be reached"),
        ("storage PUT contact_sheet.png", {"status": 403}, "answered 403"),
    ],
)
@pytest.mark.usefixtures("finished")
def test_what_the_service_refuses_is_said_in_words_with_what_to_do(
    cloud: Cloud, asked: str, fault: dict, said: str
) -> None:
    where, method, path = asked.split()
    failing = getattr(cloud, where).fail(method, path, **fault)
    given = [f"--{name}={value}" for name, value in (("sample_classes", 2), ("sample_photos", 5), ("image_size", 16))]
    done = cloud.project.run("python", "-m", "steps.preprocess", *given, MLFLOW_EXPERIMENT_NAME="faults")
    failing.times = 0
    assert done.returncode == 1, done.stderr[-3000:]
    assert "preprocess: stopped: azureml://" in done.stderr
    assert said in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("finished")
def test_an_address_that_is_wrong_is_said_in_words(cloud: Cloud) -> None:
    wrong = cloud.workspace.uri.replace(cloud.workspace.name, "no-such-workspace")
    done = cloud.project.run("python", "-m", "steps.preprocess", "--image_size=16", MLFLOW_TRACKING_URI=wrong)
    assert done.returncode == 1
    assert "answered 404" in done.stderr
    assert "check MLFLOW_TRACKING_URI" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("finished")
def test_a_wrong_secret_is_said_in_words(cloud: Cloud) -> None:
    done = cloud.project.run("python", "-m", "steps.preprocess", "--image_size=16", AZURE_CLIENT_SECRET="wrong")
    assert done.returncode == 1
    assert "answered 401" in done.stderr
    assert "Traceback" not in done.stderr.partition("preprocess: stopped")[2]


@pytest.mark.usefixtures("finished")
def test_in_a_job_the_token_that_the_service_gave_is_renewed_before_it_expires(cloud: Cloud) -> None:
    experiment = cloud.client.get_experiment_by_name(EXPERIMENT)
    assert experiment
    identity = cloud.workspace.identity
    run = cloud.client.create_run(experiment.experiment_id, run_name="job")
    before, identity.lifetime = identity.lifetime, 60
    first = identity.issue(MANAGEMENT)
    identity.lifetime = before
    given = [f"--{name}={value}" for name, value in (("sample_classes", 2), ("sample_photos", 5), ("image_size", 16))]
    started = len(cloud.region.sent)
    done = cloud.project.run(
        "python", "-m", "steps.preprocess", *given,
        AZURE_CLIENT_SECRET=None, MLFLOW_TRACKING_TOKEN=first, MLFLOW_RUN_ID=run.info.run_id,
        MLFLOW_EXPERIMENT_ID=experiment.experiment_id,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert cloud.client.get_run(run.info.run_id).info.status == "FINISHED"
    asked = cloud.region.sent[started:]
    assert re.search(rf"/experimentids/{experiment.experiment_id}/runs/{run.info.run_id}/token$", asked[0].path)
    used = {sent.headers["authorization"].removeprefix("Bearer ") for sent in asked[1:]}
    assert used <= identity.tokens.keys() - {first}


@pytest.mark.usefixtures("finished")
def test_on_an_azure_ml_compute_its_managed_identity_is_used(cloud: Cloud) -> None:
    given = [f"--{name}={value}" for name, value in (("sample_classes", 2), ("sample_photos", 5), ("image_size", 16))]
    asked = len(cloud.login.sent)
    with managed_identity(cloud.workspace.identity) as variables:
        done = cloud.project.run(
            "python",
            "-m",
            "steps.preprocess",
            *given,
            MLFLOW_EXPERIMENT_NAME="compute",
            AZURE_CLIENT_SECRET=None,
            **variables,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(cloud.login.sent) == asked


@pytest.mark.usefixtures("finished")
def test_no_credential_reaches_parameters_tags_artifacts_output_or_files(cloud: Cloud) -> None:
    identity, blobs = cloud.workspace.identity, cloud.workspace.blobs
    assert len(identity.tokens) > 5
    secrets = [identity.secret, leaks.begin(identity.tokens), leaks.begin(blobs.grants)]
    places = [("printed", cloud.project.said.encode())]
    places += leaks.requests(cloud.region.sent)
    places += leaks.requests(cloud.storage.sent, query=False)  # the signature is in the query
    places += leaks.requests(cloud.login.sent, body=False)  # the secret is in the body
    places += [*blobs.content.items(), *leaks.files(cloud.project.folder), *leaks.files(cloud.server)]
    assert leaks.leaked(secrets, places) == []


@pytest.mark.usefixtures("finished")
def test_nothing_but_the_services_was_asked(cloud: Cloud) -> None:
    assert cloud.proxy.refused == []
