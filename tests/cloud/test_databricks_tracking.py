"""`main` tracked in a Databricks workspace, with the real clients, under the service's own names: here and as a Spark job."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from carmodel.parameters import STEPS
from tests.cloud import leaks
from tests.cloud.blobs import Blobs, blob_service
from tests.cloud.databricks_jobs import TOKEN, Workspace, make
from tests.cloud.databricks_tracking import HOST, ORGANISATION, Account, databricks_service
from tests.cloud.mlflow_server import Server
from tests.cloud.proxy import Proxy, lead
from tests.cloud.stand_in import Authority, Wire, serve
from tests.project import SHORT, TINY, Project, check_runs, environment, finished_runs, happened

pytestmark = pytest.mark.slow

EXPERIMENT = "/Users/someone@example.com/cars"
MODEL = "main.cars.carmodel"


@dataclass
class Tracked:
    """A workspace, its jobs, and a project that tracks to it."""

    account: Account
    jobs: Workspace
    workspace: Wire
    storage: Wire
    proxy: Proxy
    project: Project

    @property
    def client(self) -> MlflowClient:
        """The `mlflow server` behind the workspace: its state."""
        return MlflowClient(self.account.server)

    def runs(self) -> dict[str, Run]:
        return finished_runs(self.client, EXPERIMENT)

    def files(self, folder: str) -> set[str]:
        """Paths in the storage under a folder of the internal store."""
        root = f"root/databricks/mlflow-tracking/{folder}/artifacts/"
        return {name.removeprefix(root) for name in self.account.blobs.content if name.startswith(root)}


@pytest.fixture(scope="module")
def tracked(
    authority: Authority, server: Server, commands: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Tracked]:
    folder = tmp_path_factory.mktemp("databricks")
    account, jobs = Account(server.url, Blobs(), TOKEN), Workspace(folder / "workspace", commands)
    service = make(jobs)
    service.mount("/", databricks_service(account))
    with ExitStack() as stack:
        workspace = stack.enter_context(serve(service, authority))
        storage = stack.enter_context(serve(blob_service(account.blobs), authority))
        proxy = stack.enter_context(lead({re.escape(HOST): workspace, r".*\.blob\.core\.windows\.net": storage}))
        own = {"DATABRICKS_HOST": f"https://{HOST}", "DATABRICKS_TOKEN": account.token}
        own |= {"MLFLOW_TRACKING_URI": "databricks"} | authority.environment | proxy.environment
        # A cluster knows its workspace by itself.
        jobs.environment.update(own | SHORT, MLFLOW_DISABLE_TELEMETRY="true")
        project = Project(folder / "project", environment(commands, **own))
        yield Tracked(account, jobs, workspace, storage, proxy, project)


@pytest.fixture(scope="module")
def stopped(tracked: Tracked) -> str:
    """What `main` prints when its token is refused in the middle: at the search for the second step."""
    tracked.workspace.fail("POST", "/runs/search$", 200, body=b"{}")  # main: no runs of killed processes
    tracked.workspace.fail("POST", "/runs/search$", 200, body=b"{}")  # preprocess: does not run
    tracked.workspace.fail("POST", "/runs/search$", 200, body=b"{}")  # preprocess: nothing to reuse
    said = {"error_code": "PERMISSION_DENIED", "message": "Invalid access token."}
    tracked.workspace.fail("POST", "/runs/search$", 403, body=json.dumps(said).encode())
    done = tracked.project.main(EXPERIMENT, package_pyfunc__registered_model_name=MODEL)
    assert done.returncode == 1
    return done.stderr


@pytest.fixture(scope="module")
def finished(tracked: Tracked, stopped: str) -> dict[str, str]:
    """What happened to each step in a Spark job with the same parameters, while service and network had faults.

    It is started by the two commands of the documentation. Blanks in values, and empty ones, arrive as they are.
    """
    project, copy = tracked.project, str(tracked.project.folder.with_name("copy"))
    project.run("python", "-m", "carmodel.cloud.databricks", copy)
    tracked.workspace.fail("POST", "/runs/log-batch$", 429, headers={"Retry-After": "1"}, body=b"{}")
    tracked.workspace.fail("POST", "/artifacts/credentials-for-upload$", 503, body=b"{}")
    tracked.workspace.fail("GET", "/mlflow/runs/get$", 0)
    tracked.storage.fail("PUT", "/MLmodel$", 0)
    tracked.storage.fail("PUT", "/data/model.keras$", 403)  # the signature has expired: another is asked for
    given = ", ".join(
        f"{name}={value}" for name, value in (TINY | {"package_pyfunc.registered_model_name": MODEL}).items()
    )
    command = ["mlflow", "run", copy, "-b", "databricks", "--backend-config", "backends/databricks.json"]
    project.run(*command, "--experiment-name", EXPERIMENT, "-P", f"set={given}")
    (job,) = tracked.jobs.jobs.values()
    project.said += job.said()
    assert job.wait() == 0, project.said[-3000:]
    assert not any(fault.times for fault in (*tracked.workspace.faults, *tracked.storage.faults))
    assert f"make serve MODEL=models:/{MODEL}/1\n" in job.said()
    assert "all runs and pictures:  databricks" in job.said()
    return happened(job.said())


def test_a_refused_token_stops_main_with_what_to_do(stopped: str) -> None:
    said = stopped[stopped.index("main: stopped") :]
    assert "databricks answered 403: Invalid access token." in said
    assert "give it a role that allows this" in said
    assert "run the same command again: finished steps are reused" in said


def test_a_spark_job_of_the_same_main_finishes_through_faults(finished: dict[str, str]) -> None:
    assert finished == dict.fromkeys(STEPS, "ran") | {"preprocess": "reused"}


@pytest.mark.usefixtures("finished")
def test_the_workspace_has_runs_with_parameters_metrics_and_lineage(tracked: Tracked) -> None:
    check_runs(tracked.runs())


@pytest.mark.usefixtures("finished")
def test_the_storage_has_artifacts_and_models(tracked: Tracked) -> None:
    runs = tracked.runs()
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
        assert paths <= tracked.files(f"{experiment}/{runs[name].info.run_id}"), name
    models = {model.name: model for model in tracked.client.search_logged_models([experiment])}
    assert models.keys() == {"model", "classifier"}
    for model in models.values():
        assert {"MLmodel", "requirements.txt"} <= tracked.files(f"{experiment}/logged_models/{model.model_id}")
    # The workspace's token is for the workspace alone.
    assert all("authorization" not in sent.headers for sent in tracked.storage.sent)


@pytest.mark.usefixtures("finished")
def test_unity_catalog_has_the_version_with_files_aliases_tags_and_run(tracked: Tracked) -> None:
    catalog, run = tracked.account.catalog, tracked.runs()["package_pyfunc"]
    version = catalog.version(MODEL, "1")
    assert {"candidate", "champion"} == catalog.models[MODEL]["aliases"].keys()
    assert {tag["key"] for tag in version["tags"]} == {"test_top1", "test_store", "test_report"}
    assert (version["status"], version["run_id"]) == ("READY", run.info.run_id)
    assert version["run_tracking_server_id"] == ORGANISATION
    folder = f"catalog/Models/{MODEL.replace('.', '/')}/1"
    assert {f"{folder}/MLmodel", f"{folder}/artifacts/model.keras"} <= tracked.account.blobs.content.keys()


@pytest.mark.usefixtures("finished")
def test_the_registered_classifier_answers_by_its_alias(tracked: Tracked) -> None:
    program = f"""
import mlflow
model = mlflow.pyfunc.load_model("models:/{MODEL}@candidate")
(answer,) = model.predict(model.input_example.head(1)).to_dict("records")
print("answered", answer["label"], answer["error"])
"""
    done = tracked.project.run("python", "-c", program)
    assert re.search(r"answered Synthetic \w+ 2020 None", done.stdout), done.stdout[-1000:] + done.stderr[-3000:]


@pytest.mark.usefixtures("finished")
def test_the_workspace_s_own_registry_has_tags_instead_of_aliases(tracked: Tracked) -> None:
    experiment, name = tracked.runs()["main"].info.experiment_id, "carmodel-own"
    (classifier,) = tracked.client.search_logged_models([experiment], "name = 'classifier'")
    program = f"""
import mlflow
from carmodel.serving.registry import promote, register, uri_of
from carmodel.tracking.artifacts import fetch, listing
client = mlflow.MlflowClient()
for accuracy in (0.5, 0.6):
    version = register("models:/{classifier.model_id}", "{name}", accuracy, "a store")
    print(promote(client, "{name}", version, 0.4).reason)
print(uri_of(client, "{name}", "champion"), (fetch("models:/{name}/2") / "MLmodel").is_file())
"""
    done = tracked.project.run("python", "-c", program, MLFLOW_REGISTRY_URI="databricks")
    assert done.stdout.splitlines()[-1] == f"models:/{name}/2 True", done.stdout[-1000:] + done.stderr[-3000:]
    first, second = (tracked.client.get_model_version(name, number) for number in ("1", "2"))
    assert first.tags.keys() == {"test_top1", "test_store"}
    assert second.tags.keys() == {"test_top1", "test_store", "alias.candidate", "alias.champion"}
    assert re.fullmatch(r"dbfs:/databricks/mlflow-tracking/\d+/logged_models/m-[0-9a-f]+/artifacts", second.source)


@pytest.mark.usefixtures("finished")
def test_artifacts_that_the_files_api_refuses_go_to_signed_addresses(tracked: Tracked) -> None:
    internal, signed = "^/api/2.0/fs/files/WorkspaceInternal/Mlflow/Artifacts/.*", "/databricks/mlflow-tracking/.*"
    for path in ("/data/train.h5$", "/MLmodel$"):
        assert tracked.workspace.seen("PUT", internal + path)  # refused
        assert tracked.storage.seen("PUT", signed + path)
    assert tracked.workspace.seen("PUT", f"{internal}/examples/0.jpg$")
    assert not tracked.storage.seen("PUT", f"{signed}/examples/0.jpg$")


@pytest.mark.parametrize(
    ("asked", "fault", "said"),
    [
        ("workspace POST /runs/log-batch$", {"status": 500, "times": 9}, "answered 500"),
        ("workspace POST /runs/log-batch$", {"status": 0, "times": 99}, "cannot be reached"),
        ("storage PUT contact_sheet.png", {"status": 403, "times": 9}, "answered 403"),
    ],
)
@pytest.mark.usefixtures("finished")
def test_a_refusal_of_the_service_is_explained(tracked: Tracked, asked: str, fault: dict, said: str) -> None:
    where, method, path = asked.split()
    failing = getattr(tracked, where).fail(method, path, **fault)
    done = tracked.project.preprocess(MLFLOW_EXPERIMENT_NAME=EXPERIMENT)
    failing.times = 0
    assert done.returncode == 1, done.stderr[-3000:]
    assert "preprocess: stopped: databricks" in done.stderr
    assert said in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("finished")
def test_a_wrong_name_of_an_experiment_is_explained(tracked: Tracked) -> None:
    done = tracked.project.preprocess(MLFLOW_EXPERIMENT_NAME="no-path")
    assert done.returncode == 1
    assert "An experiment name must be an absolute path" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("finished")
def test_no_credential_leaks_and_only_the_services_are_asked(tracked: Tracked, server: Server) -> None:
    blobs = tracked.account.blobs
    assert len(blobs.grants) > 20
    places = [("output", tracked.project.said.encode())]
    places += leaks.requests(tracked.workspace.sent)
    places += leaks.requests(tracked.storage.sent, query=False)  # the signature is in the query
    places += [*blobs.content.items(), *leaks.files(tracked.project.folder.parent), *leaks.files(server.folder)]
    assert leaks.leaked([tracked.account.token, leaks.begin(blobs.grants)], places) == []
    assert tracked.proxy.refused == []
