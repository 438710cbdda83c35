"""Web services on ACI and AKS: azureml-mlflow's real deployment client against a stand-in of the workspace, and the real
classifier behind the address that it gives."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import yaml

from carmodel.cloud.azureml_private import parse_webservice_settings
from carmodel.deploy import webservice
from carmodel.deploy.smoke import smoke_test
from carmodel.deploy.status import DeployError
from carmodel.deploy.webservice import _changed_settings
from carmodel.errors import InputError
from carmodel.parameters import Deploy
from tests.cloud.azureml_cloud import Azure
from tests.cloud.azureml_services import scoring_service
from tests.cloud.stand_in import Authority, serve
from tests.project import client_here
from tests.tiny import NAMES, Endpoint

BACKENDS = Path(__file__).parents[2] / "backends"
MMS = "/modelmanagement/v1.0"
EXPERIMENT = "webservices"


class Client:
    """A client of the workspace `cloud`: the services there, and what it sent to the workspace's region."""

    def __init__(self, cloud: Azure) -> None:
        self.cloud, self.services, self.region = cloud, cloud.services, cloud.region

    def sent(self, method: str, path: str = "/services") -> list[dict]:
        """Bodies of the requests for services."""
        return [json.loads(sent.body or b"{}") for sent in self.region.seen(method, f"^{MMS}.*{path}")]


@pytest.fixture(scope="module")
def registered(
    cloud: Azure, authority: Authority, endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Azure]:
    """The workspace with two versions of the classifier, and a real server of it behind all services."""
    # Its code is left out: sixty files, which nothing here reads.
    folder = tmp_path_factory.mktemp("model") / "classifier"
    shutil.copytree(endpoint.model, folder, ignore=shutil.ignore_patterns("code"))
    with serve(scoring_service(cloud.services, endpoint.address), authority) as scoring:
        cloud.services.address = scoring.url
        with client_here(cloud.environment):
            client = mlflow.MlflowClient()
            run = client.create_run(client.create_experiment(EXPERIMENT))
            client.log_artifacts(run.info.run_id, str(folder), "classifier")
            client.create_registered_model("carmodel")
            for _ in range(2):
                client.create_model_version("carmodel", f"{run.info.artifact_uri}/classifier", run.info.run_id)
        yield cloud


@pytest.fixture
def client(registered: Azure, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """This process as a client of the workspace without services, in an active run, as the step has it."""
    client = Client(registered)
    client.services.reset()
    registered.online.reset()
    monkeypatch.setattr(webservice, "POLL_SECONDS", 0.05)
    with client_here(registered.environment):
        experiment = mlflow.get_experiment_by_name(EXPERIMENT).experiment_id
        with mlflow.start_run(experiment_id=experiment):
            for wire in (registered.region, registered.management):
                wire.sent.clear()
                wire.faults.clear()
            yield client


def settings(target: str, version: int = 1, **changed: object) -> Deploy:
    uri = f"models:/carmodel/{version}"
    return Deploy(**{"target": target, "name": "cars", "model_uri": uri, "timeout": 60} | changed)


def settings_file(folder: Path, target: str, **changed: object) -> str:
    """Write a settings file that differs from ours; None leaves a key out."""
    file = folder / f"{target}.yml"
    content = yaml.safe_load((BACKENDS / f"{target}.yml").read_text()) | changed
    file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return str(file)


@pytest.mark.parametrize("target", ["aci", "aks"])
def test_a_service_is_created_answers_is_updated_and_deleted(
    client: Client, target: str, sample: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = webservice.deploy(settings(target))
    assert made.state == "Healthy"
    (body,) = client.sent("POST", "/services$")
    assert (body["name"], body["computeType"], body["authEnabled"]) == ("cars", target.upper(), True)
    image = body["environmentImageRequest"]
    assert image["modelIds"] == ["carmodel-webservice:1"]
    packages = image["environment"]["python"]["condaDependencies"]["dependencies"][-1]["pip"]
    assert [package for package in packages if "inference-server" in package] == [webservice.SERVER]
    file = yaml.safe_load((BACKENDS / f"{target}.yml").read_text())
    assert body["containerResourceRequirements"] == file["containerResourceRequirements"]
    assert body.get("computeName") == file.get("computeTargetName")

    photo = next((sample / "cars_test").glob("*.jpg")).read_bytes()
    assert re.match(r"a photo was answered with '(.+)' \(0\.\d+\) in", said := smoke_test(made, photo))
    assert any(name in said for name in NAMES)
    for wrong, status in (({"headers": {}}, 401), ({"rows_key": "dataframe_split"}, 500)):
        with pytest.raises(DeployError, match=f"answers {status}"):
            smoke_test(replace(made, **wrong), photo)

    again = webservice.deploy(settings(target))
    assert (again.url, again.headers) == (made.url, made.headers)
    assert len(client.sent("POST", "/services$")) == 1 and client.sent("PATCH") == []

    newer = webservice.deploy(settings(target, version=2))
    (patches,) = client.sent("PATCH")
    changed = {patch["path"]: patch["value"] for patch in patches}
    assert changed["/environmentImageRequest"]["modelIds"] == ["carmodel-webservice:2"]
    assert "carmodel-webservice:2" in newer.detail
    assert newer.url == made.url
    smoke_test(newer, photo)
    status = webservice.status(settings(target))
    assert (status.state, status.url, status.headers) == ("Healthy", made.url, made.headers)

    webservice.delete(settings(target))
    assert client.services.kept == {}
    webservice.delete(settings(target))
    with pytest.raises(InputError, match=rf"no web service cars.*-P target={target} .*-P action=deploy"):
        webservice.status(settings(target))

    printed = "".join(capfd.readouterr())
    for line in ("cars is Transitioning", "cars is Healthy", "cars already serves models:/carmodel/1"):
        assert line in printed
    key = made.headers["Authorization"].removeprefix("Bearer ")
    assert not [secret for secret in (key, *client.cloud.workspace.identity.tokens) if secret in printed + repr(made)]


def test_our_settings_are_what_the_client_s_own_parser_makes_of_them() -> None:
    aci, aks = (yaml.safe_load((BACKENDS / f"{target}.yml").read_text()) for target in ("aci", "aks"))
    parsed = parse_webservice_settings("aci", aci)
    assert (parsed.auth_enabled, parsed.cpu_cores, parsed.memory_gb) == (True, 2, 4)
    parsed = parse_webservice_settings("aks", aks)
    assert (parsed.auth_enabled, parsed.cpu_cores, parsed.compute_target_name) == (True, 1, "cars-aks")
    assert (parsed.num_replicas, parsed.scoring_timeout_ms, parsed.initial_delay_seconds) == (1, 60000, 120)


def test_a_service_asks_for_keys_unless_the_settings_say_otherwise(client: Client, tmp_path: Path) -> None:
    made = webservice.deploy(settings("aci", settings_file=settings_file(tmp_path, "aci", authEnabled=None)))
    assert client.sent("POST", "/services$")[0]["authEnabled"] is True
    assert made.headers


def test_a_new_tag_is_a_change() -> None:
    deployed = {"tags": {"copy_of": "models:/carmodel/1"}, "properties": None}
    assert _changed_settings({"tags": {"team": "a"}, "properties": {"b": "c"}}, deployed) == [
        "tags.team",
        "properties.b",
    ]
    assert _changed_settings({"tags": {"copy_of": "models:/carmodel/1"}}, deployed) == []


def test_a_changed_setting_updates_the_service_unless_it_is_fixed(client: Client, tmp_path: Path) -> None:
    webservice.deploy(settings("aks"))
    webservice.deploy(settings("aks", settings_file=settings_file(tmp_path, "aks", numReplicas=3)))
    assert client.services.kept["cars"]["numReplicas"] == 3
    for changed in ({"containerResourceRequirements": {"cpu": 4, "memoryInGB": 4}}, {"computeTargetName": "other"}):
        with pytest.raises(InputError, match=f"{next(iter(changed))}.*delete it first.*action=delete"):
            webservice.deploy(settings("aks", settings_file=settings_file(tmp_path, "aks", **changed)))
    assert len(client.sent("PATCH")) == 1


@pytest.mark.parametrize(
    ("target", "changed", "said"),
    [
        ("aci", {"computeType": "aks"}, "computeType is not aci"),
        ("aci", {"containerResourceRequirements": {"cpu": -1, "memoryInGB": 1}}, "cpu_cores must be positive"),
        ("aci", {"sslEnabled": True}, "must provide a SSL certificate, key, and cname"),
        ("aks", {"tokenAuthEnabled": True}, "cannot both be true"),
    ],
)
def test_invalid_settings_are_refused_before_any_request(
    client: Client, tmp_path: Path, target: str, changed: dict, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        webservice.deploy(settings(target, settings_file=settings_file(tmp_path, target, **changed)))
    # A thread of the SDK may still ask for the operation of an earlier test's service.
    assert [request.path for request in client.region.sent if "/operations/" not in request.path] == []


def test_a_failed_service_is_explained_and_created_again_by_a_rerun(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.services.ends_as("Failed", "AciDeploymentFailed", "Aci Deployment failed.", "Your container crashed.")
    with pytest.raises(DeployError) as failed:
        webservice.deploy(settings("aci"))
    assert "cars is Failed: Aci Deployment failed. Your container crashed." in str(failed.value)
    assert "-P target=aci -P name=cars -P action=delete" in str(failed.value)
    assert "may cost money" in str(failed.value)
    status = webservice.status(settings("aci"))
    assert (status.state, status.url, status.headers) == ("Failed", "", {})
    assert "Your container crashed." in status.detail

    client.services.ends_as("Healthy")
    assert webservice.deploy(settings("aci")).state == "Healthy"
    assert "cars has failed before its first answer: deleting it" in capsys.readouterr().out
    assert len(client.sent("POST", "/services$")) == 2


def test_a_failed_update_names_the_previous_version_and_is_repeated_by_a_rerun(
    client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    webservice.deploy(settings("aci"))
    client.services.ends_as("Failed", "AciDeploymentFailed", "Out of memory.")
    with pytest.raises(DeployError, match="(?s)Out of memory.*restore the previous version:  .*models:/carmodel/1"):
        webservice.deploy(settings("aci", version=2))
    client.services.ends_as("Healthy")
    webservice.deploy(settings("aci", version=2))
    assert "updating cars: it has failed" in capsys.readouterr().out
    assert "-P model_uri=models:/carmodel/2" in webservice.deploy(settings("aci")).undo


def test_the_copy_is_kept_in_the_run_of_the_deployment(client: Client) -> None:
    tracking = mlflow.MlflowClient()
    webservice.deploy(settings("aci"))
    copies = tracking.search_model_versions("name = 'carmodel-webservice'")
    (copy,) = [copy for copy in copies if copy.tags["copy_of"] == "models:/carmodel/1"]
    packaged = tracking.get_model_version("carmodel", "1").run_id
    assert [item.path for item in tracking.list_artifacts(packaged)] == ["classifier"]
    assert "webservice-1" in [item.path for item in tracking.list_artifacts(copy.run_id)]


@pytest.mark.parametrize("state", ["Unhealthy", "Transitioning"])
def test_a_service_that_is_not_healthy_in_time_is_resumed_by_a_rerun(
    client: Client, state: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client.services.ends_as(state, "ContainerNotReady", "The container does not answer.")
    client.services.pace = 1000 if state == "Transitioning" else 0
    with pytest.raises(DeployError, match=rf"(?s)cars is {state} after timeout=1 seconds: .*-P action=delete"):
        webservice.deploy(settings("aci", timeout=1))
    client.services.kept["cars"] |= {"state": "Transitioning", "left": 1}
    client.services.ends_as("Healthy")
    assert webservice.deploy(settings("aci")).state == "Healthy"
    assert "waiting for an earlier operation on cars" in capsys.readouterr().out
    assert len(client.sent("POST", "/services$")) == 1


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, {"error": {"code": "UserError", "message": "It has expired."}}, "401: .*It has expired.*az login"),
        (403, {"code": "Forbidden", "statusCode": 403, "message": "No such right."}, "403: .*No such right.*role"),
        (409, {"code": "Conflict", "message": "The name is taken."}, "409: .*name is taken.*run this again"),
    ],
)
def test_a_refusal_is_reported_with_the_service_s_message(client: Client, status: int, body: dict, said: str) -> None:
    client.region.fail("POST", f"{MMS}.*/services$", status, body=json.dumps(body).encode())
    with pytest.raises(DeployError, match=f"(?s){said}"):
        webservice.deploy(settings("aci"))


@pytest.mark.parametrize(("status", "headers"), [(429, {"Retry-After": "1"}), (500, {}), (0, {})])
def test_a_passing_fault_is_retried(client: Client, status: int, headers: dict[str, str]) -> None:
    webservice.deploy(settings("aci"))
    fault = client.region.fail("GET", f"{MMS}.*/services/cars$", status, headers=headers)
    assert webservice.status(settings("aci")).state == "Healthy"
    assert fault.times == 0


def test_a_deletion_waits_for_another_operation_until_the_timeout(client: Client) -> None:
    webservice.deploy(settings("aci"))
    fault = client.region.fail("DELETE", f"{MMS}.*/services/cars$", 409, body=b'{"title": "Conflict"}', times=1000)
    with pytest.raises(DeployError, match="(?s)still exists after timeout=1 seconds.*may cost money.*action=delete"):
        webservice.delete(settings("aci", timeout=1))
    fault.times = 1
    webservice.delete(settings("aci"))
    assert client.services.kept == {}


def test_a_service_or_endpoint_of_another_kind_is_left_alone(client: Client) -> None:
    webservice.deploy(settings("aci"))
    for act in (webservice.deploy, webservice.delete):
        with pytest.raises(InputError, match="a service on ACI: choose another name"):
            act(settings("aks"))
    assert client.services.kept["cars"]["computeType"] == "ACI"
    endpoint = {"name": "cars", "location": "eastus", "properties": {"authMode": "Key", "traffic": {"blue": 100}}}
    for act in (webservice.deploy, webservice.delete):
        client.cloud.management.fail("GET", "/onlineEndpoints/cars$", 200, body=json.dumps(endpoint).encode())
        with pytest.raises(InputError, match="an online endpoint of this workspace: choose another name"):
            act(settings("aci"))
    assert client.sent("DELETE") == []


def test_a_renewed_certificate_updates_the_service(client: Client, tmp_path: Path, authority: Authority) -> None:
    certificate = tmp_path / "cert.pem"
    files = {"sslCertificate": str(certificate), "sslKey": str(authority.key), "cname": "cars.example.com"}
    file = settings_file(tmp_path, "aci", sslEnabled=True, **files)
    for renewed in ("", "\n", "\n"):
        certificate.write_text(authority.certificate.read_text() + renewed)
        webservice.deploy(settings("aci", settings_file=file))
    (patches,) = client.sent("PATCH")
    assert {patch["path"]: patch["value"] for patch in patches}["/sslCertificate"] == certificate.read_text()


def test_it_needs_a_workspace(tmp_path: Path) -> None:
    own = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    with (
        client_here(own),
        pytest.raises(InputError, match="MLFLOW_TRACKING_URI=sqlite:.* is not the URI of an Azure ML workspace"),
    ):
        webservice.deploy(settings("aci"))
