"""Web services on ACI and AKS: azureml-mlflow's real deployment client against a stand-in of the workspace, and the real
classifier behind the address that it gives."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import mlflow
import pytest
import yaml

from carmodel.cloud.azureml_private import parse_webservice_settings
from carmodel.deploy import webservice
from carmodel.deploy.smoke import smoke_test
from carmodel.deploy.status import DeployError
from carmodel.errors import InputError
from carmodel.parameters import Deploy
from tests.cloud.azureml_services import Services, endpoints_service, region_service, scoring_service
from tests.cloud.azureml_tracking import Workspace, management_service
from tests.cloud.blobs import Blobs, blob_service
from tests.cloud.identity import Identity, login_service
from tests.cloud.mlflow_server import mlflow_server
from tests.cloud.proxy import Proxy, lead
from tests.cloud.stand_in import Authority, Wire, serve
from tests.tiny import NAMES, Endpoint

BACKENDS = Path(__file__).parents[2] / "backends"
MMS = "/modelmanagement/v1.0"


class Cloud(NamedTuple):
    """A workspace with two versions of the classifier, and what its region and Resource Manager were sent."""

    services: Services
    region: Wire
    management: Wire
    proxy: Proxy

    def sent(self, method: str, path: str = "/services") -> list[dict]:
        """Bodies of the requests for services."""
        return [json.loads(sent.body or b"{}") for sent in self.region.seen(method, f"^{MMS}.*{path}")]


@pytest.fixture(scope="module")
def workspace(authority: Authority, endpoint: Endpoint, tmp_path_factory) -> Iterator[Cloud]:
    with ExitStack() as stack:
        server = stack.enter_context(mlflow_server(tmp_path_factory.mktemp("workspace")))
        identity, blobs = Identity(), Blobs()
        services = Services(Workspace(server, identity, blobs))
        region, management = region_service(services), endpoints_service(services, management_service())
        scoring = stack.enter_context(serve(scoring_service(services, endpoint.address), authority))
        services.address = scoring.url
        login = stack.enter_context(serve(login_service(identity), authority))
        storage = stack.enter_context(serve(blob_service(blobs), authority))
        cloud = Cloud(
            services,
            wire := stack.enter_context(serve(region, authority)),
            arm := stack.enter_context(serve(management, authority)),
            stack.enter_context(
                lead(
                    {
                        r"eastus\.api\.azureml\.ms": wire,
                        r"management\.azure\.com": arm,
                        r"login\.microsoftonline\.com": login,
                        r".*\.blob\.core\.windows\.net": storage,
                    }
                )
            ),
        )
        variables = authority.environment | cloud.proxy.environment | identity.environment
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in (variables | {"MLFLOW_TRACKING_URI": services.workspace.uri}).items():
            patch.setenv(name, value)
        before = mlflow.get_tracking_uri()
        stack.callback(mlflow.set_tracking_uri, before)
        mlflow.set_tracking_uri(services.workspace.uri)
        client = mlflow.MlflowClient()
        run = client.create_run(client.create_experiment("cars"))
        # Its code/ stays at home: sixty files more, which nothing here reads.
        folder = shutil.copytree(
            endpoint.model, tmp_path_factory.mktemp("model") / "classifier", ignore=shutil.ignore_patterns("code")
        )
        client.log_artifacts(run.info.run_id, str(folder), "classifier")
        client.create_registered_model("carmodel")
        for _ in range(2):
            client.create_model_version("carmodel", f"{run.info.artifact_uri}/classifier", run.info.run_id)
        yield cloud


@pytest.fixture
def cloud(workspace: Cloud, monkeypatch) -> Iterator[Cloud]:
    """The workspace without services, and an active run, as the step has it."""
    for kept in (
        workspace.services.kept,
        workspace.services.keys,
        workspace.region.sent,
        workspace.region.faults,
    ):
        kept.clear()
    workspace.management.sent.clear()
    workspace.services.ends_as("Healthy")
    workspace.services.pace = 2
    monkeypatch.setattr(webservice, "POLL_SECONDS", 0.05)
    with mlflow.start_run(experiment_id=mlflow.get_experiment_by_name("cars").experiment_id):
        workspace.region.sent.clear()
        yield workspace


def settings(target: str, version: int = 1, **changed) -> Deploy:
    uri = f"models:/carmodel/{version}"
    return Deploy(**{"target": target, "name": "cars", "model_uri": uri, "timeout": 60} | changed)


@pytest.mark.parametrize("target", ["aci", "aks"])
def test_it_is_created_answers_is_left_alone_updated_and_deleted(cloud, target, authority, sample, capfd):
    made = webservice.deploy(settings(target))
    assert made.state == "Healthy"
    (body,) = cloud.sent("POST", "/services$")
    assert body["name"] == "cars"
    assert body["computeType"] == target.upper()
    assert body["authEnabled"] is True
    assert body["environmentImageRequest"]["modelIds"] == ["carmodel-webservice:1"]
    conda = body["environmentImageRequest"]["environment"]["python"]["condaDependencies"]["dependencies"]
    assert [one for one in conda[-1]["pip"] if "inference-server" in one] == [webservice.SERVER]
    file = yaml.safe_load((BACKENDS / f"{target}.yml").read_text())
    assert body["containerResourceRequirements"] == file["containerResourceRequirements"]
    assert body.get("computeName") == file.get("computeTargetName")
    printed = capfd.readouterr().out
    assert "cars is Transitioning" in printed and "cars is Healthy" in printed

    photo = next((sample / "cars_test").glob("*.jpg")).read_bytes()
    assert re.match(r"a photo was answered with '(.+)' \(0\.\d+\) in", said := smoke_test(made, photo))
    assert any(name in said for name in NAMES)
    with pytest.raises(DeployError, match="answers 401"):
        smoke_test(made._replace(headers={}), photo)

    with pytest.raises(DeployError, match="answers 500"):
        smoke_test(made._replace(rows_key="dataframe_split"), photo)

    again = webservice.deploy(settings(target))
    assert (again.url, again.headers) == (made.url, made.headers)
    printed += (out := capfd.readouterr().out)
    assert "cars already serves models:/carmodel/1" in out
    assert len(cloud.sent("POST", "/services$")) == 1
    assert cloud.sent("PATCH") == []

    newer = webservice.deploy(settings(target, version=2))
    (patches,) = cloud.sent("PATCH")
    changed = {patch["path"]: patch["value"] for patch in patches}
    assert changed["/environmentImageRequest"]["modelIds"] == ["carmodel-webservice:2"]
    assert "carmodel-webservice:2" in newer.detail
    assert newer.url == made.url
    smoke_test(newer, photo)

    there = webservice.status(settings(target))
    assert (there.state, there.url, there.headers) == ("Healthy", made.url, made.headers)

    webservice.delete(settings(target))
    assert cloud.services.kept == {}
    webservice.delete(settings(target))
    with pytest.raises(InputError, match=rf"no web service cars.*-P target={target} .*-P action=deploy"):
        webservice.status(settings(target))

    out, err = capfd.readouterr()
    for secret in [made.headers["Authorization"].removeprefix("Bearer "), *cloud.services.workspace.identity.tokens]:
        assert secret not in printed + out + err + repr(made)


def test_every_request_for_services_is_authorised_and_names_its_version(cloud):
    webservice.deploy(settings("aci"))
    for sent in cloud.region.seen("GET", MMS) + cloud.region.seen("POST", MMS):
        assert sent.headers["authorization"].startswith("Bearer ")
    assert {sent.query for sent in cloud.management.seen("GET", "/onlineEndpoints/")} == {
        "api-version=2022-02-01-preview"
    }


def settings_file(folder: Path, target: str, **changed) -> str:
    """A settings file that differs from ours."""
    file = folder / f"{target}.yml"
    file.write_text(yaml.safe_dump(yaml.safe_load((BACKENDS / f"{target}.yml").read_text()) | changed))
    return str(file)


def test_our_settings_are_what_the_clients_own_parser_makes_of_them():
    aci, aks = (yaml.safe_load((BACKENDS / f"{target}.yml").read_text()) for target in ("aci", "aks"))
    parsed = parse_webservice_settings("aci", aci)
    assert (parsed.auth_enabled, parsed.cpu_cores, parsed.memory_gb) == (True, 2, 4)
    parsed = parse_webservice_settings("aks", aks)
    assert (parsed.auth_enabled, parsed.cpu_cores, parsed.compute_target_name) == (True, 1, "cars-aks")
    assert (parsed.num_replicas, parsed.scoring_timeout_ms, parsed.initial_delay_seconds) == (1, 60000, 120)


def test_keys_are_asked_for_unless_the_settings_say_otherwise(cloud, tmp_path):
    without = yaml.safe_load((BACKENDS / "aci.yml").read_text())
    del without["authEnabled"]
    (tmp_path / "aci.yml").write_text(yaml.safe_dump(without))
    made = webservice.deploy(settings("aci", settings_file=str(tmp_path / "aci.yml")))
    assert cloud.sent("POST", "/services$")[0]["authEnabled"] is True
    assert made.headers


def test_a_changed_setting_updates_and_one_that_cannot_change_says_so(cloud, tmp_path):
    webservice.deploy(settings("aks"))
    webservice.deploy(settings("aks", settings_file=settings_file(tmp_path, "aks", numReplicas=3)))
    assert cloud.services.kept["cars"]["numReplicas"] == 3
    for changed in ({"containerResourceRequirements": {"cpu": 4, "memoryInGB": 4}}, {"computeTargetName": "other"}):
        with pytest.raises(InputError, match=f"{next(iter(changed))}.*delete it first.*action=delete"):
            webservice.deploy(settings("aks", settings_file=settings_file(tmp_path, "aks", **changed)))
    assert len(cloud.sent("PATCH")) == 1


@pytest.mark.parametrize(
    ("target", "changed", "said"),
    [
        ("aci", {"computeType": "aks"}, "computeType is not aci"),
        ("aci", {"containerResourceRequirements": {"cpu": -1, "memoryInGB": 1}}, "cpu_cores must be positive"),
        ("aci", {"sslEnabled": True}, "must provide a SSL certificate, key, and cname"),
        ("aks", {"tokenAuthEnabled": True}, "cannot both be true"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_request(cloud, tmp_path, target, changed, said):
    with pytest.raises(InputError, match=said):
        webservice.deploy(settings(target, settings_file=settings_file(tmp_path, target, **changed)))
    assert cloud.region.sent == []


def test_a_service_that_failed_is_explained_and_created_again_by_a_rerun(cloud, capsys):
    cloud.services.ends_as("Failed", "AciDeploymentFailed", "Aci Deployment failed.", "Your container crashed.")
    with pytest.raises(DeployError) as caught:
        webservice.deploy(settings("aci"))
    said = str(caught.value)
    assert "cars is Failed: Aci Deployment failed. Your container crashed." in said
    assert "-P target=aci -P name=cars -P action=delete" in said
    assert "may cost money" in said
    there = webservice.status(settings("aci"))
    assert (there.state, there.url, there.headers) == ("Failed", "", {})
    assert "Your container crashed." in there.detail

    cloud.services.ends_as("Healthy")
    assert webservice.deploy(settings("aci")).state == "Healthy"
    assert "cars has failed before its first answer: deleting it" in capsys.readouterr().out
    assert len(cloud.sent("POST", "/services$")) == 2


def test_a_failed_update_names_the_previous_version_and_is_repeated_by_a_rerun(cloud, capsys):
    webservice.deploy(settings("aci"))
    cloud.services.ends_as("Failed", "AciDeploymentFailed", "Out of memory.")
    with pytest.raises(DeployError, match="(?s)Out of memory.*restore the previous version:  .*models:/carmodel/1"):
        webservice.deploy(settings("aci", version=2))
    cloud.services.ends_as("Healthy")
    webservice.deploy(settings("aci", version=2))
    assert "updating cars: it has failed" in capsys.readouterr().out
    assert "-P model_uri=models:/carmodel/2" in webservice.deploy(settings("aci")).undo


def test_the_copy_is_kept_in_the_run_of_the_deployment(cloud):
    client = mlflow.MlflowClient()
    webservice.deploy(settings("aci"))
    copies = client.search_model_versions("name = 'carmodel-webservice'")
    (copy,) = [copy for copy in copies if copy.tags["copy_of"] == "models:/carmodel/1"]
    packaged = client.get_model_version("carmodel", "1").run_id
    assert [item.path for item in client.list_artifacts(packaged)] == ["classifier"]
    assert "webservice-1" in [item.path for item in client.list_artifacts(copy.run_id)]


@pytest.mark.parametrize("state", ["Unhealthy", "Transitioning", "Unschedulable"])
def test_a_service_that_never_gets_healthy_is_named_and_a_rerun_waits_on(cloud, state, capsys):
    cloud.services.ends_as(state, "ContainerNotReady", "The container does not answer.")
    cloud.services.pace = 1000 if state == "Transitioning" else 0
    with pytest.raises(DeployError, match=rf"(?s)cars is {state} after timeout=1 seconds: .*-P action=delete"):
        webservice.deploy(settings("aci", timeout=1))
    cloud.services.kept["cars"] |= {"state": "Transitioning", "left": 1}
    cloud.services.ends_as("Healthy")
    assert webservice.deploy(settings("aci")).state == "Healthy"
    assert "waiting for an earlier operation on cars" in capsys.readouterr().out
    assert len(cloud.sent("POST", "/services$")) == 1


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (
            401,
            {"error": {"code": "UserError", "message": "The token has expired."}},
            "401: .*token has expired.*az login",
        ),
        (403, {"code": "Forbidden", "statusCode": 403, "message": "No such right."}, "403: .*No such right.*role"),
        (404, {"code": "NotFound", "message": "No workspace cars-ws."}, "404: .*No workspace.*MLFLOW_TRACKING_URI"),
        (409, {"code": "Conflict", "message": "The name is taken."}, "409: .*name is taken.*run this again"),
    ],
)
def test_what_the_service_refuses_is_said_in_its_words_and_a_rerun_finishes(cloud, status, body, said):
    cloud.region.fail("POST", f"{MMS}.*/services$", status, body=json.dumps(body).encode())
    with pytest.raises(DeployError, match=f"(?s){said}"):
        webservice.deploy(settings("aci"))
    assert webservice.deploy(settings("aci")).state == "Healthy"


@pytest.mark.parametrize(
    ("status", "headers"), [(429, {"Retry-After": "1"}), (503, {"Retry-After": "1"}), (500, {}), (0, {})]
)
def test_a_passing_fault_is_tried_again(cloud, status, headers):
    webservice.deploy(settings("aci"))
    cloud.region.fail("GET", f"{MMS}.*/services/cars$", status, headers=headers)
    assert webservice.status(settings("aci")).state == "Healthy"
    assert cloud.region.faults[0].times == 0


def test_a_deletion_that_another_operation_holds_up_is_tried_again(cloud):
    webservice.deploy(settings("aci"))
    cloud.region.fail("DELETE", f"{MMS}.*/services/cars$", 409, body=b'{"title": "Conflict"}')
    webservice.delete(settings("aci"))
    assert cloud.services.kept == {}
    webservice.deploy(settings("aci"))
    cloud.region.fail("DELETE", f"{MMS}.*/services/cars$", 409, body=b'{"title": "Conflict"}', times=1000)
    with pytest.raises(DeployError, match="(?s)still exists after timeout=1 seconds.*may cost money.*action=delete"):
        webservice.delete(settings("aci", timeout=1))


def test_a_name_of_something_else_is_left_alone(cloud):
    webservice.deploy(settings("aci"))
    for act in (webservice.deploy, webservice.delete):
        with pytest.raises(InputError, match="a service on ACI: choose another name"):
            act(settings("aks"))
    assert cloud.services.kept["cars"]["computeType"] == "ACI"
    endpoint = {"name": "cars", "location": "eastus", "properties": {"authMode": "Key", "traffic": {"blue": 100}}}
    for act in (webservice.deploy, webservice.delete):
        cloud.management.fail("GET", "/onlineEndpoints/cars$", 200, body=json.dumps(endpoint).encode())
        with pytest.raises(InputError, match="an online endpoint of this workspace: choose another name"):
            act(settings("aci"))
    assert cloud.sent("DELETE") == []


def test_a_renewed_certificate_updates_the_service(cloud, tmp_path, authority):
    certificate = tmp_path / "cert.pem"
    files = {"sslCertificate": str(certificate), "sslKey": str(authority.key), "cname": "cars.example.com"}
    file = settings_file(tmp_path, "aci", sslEnabled=True, **files)
    for renewed in ("", "\n", "\n"):
        certificate.write_text(authority.certificate.read_text() + renewed)
        webservice.deploy(settings("aci", settings_file=file))
    (patches,) = cloud.sent("PATCH")
    assert {patch["path"]: patch["value"] for patch in patches}["/sslCertificate"] == certificate.read_text()


def test_it_needs_a_workspace():
    with pytest.MonkeyPatch.context() as patch:
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri("sqlite:///nowhere.db")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with pytest.raises(InputError, match="MLFLOW_TRACKING_URI=sqlite:.* names no Azure ML workspace"):
            webservice.deploy(settings("aci"))
        mlflow.set_tracking_uri(before)
