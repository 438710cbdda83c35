"""The private interfaces of other libraries that carmodel.cloud uses. When an upgrade breaks one, its test fails here."""

from inspect import signature

import pytest
from azureml.mlflow.deploy import AzureMLDeploymentClient
from azureml.mlflow.deploy._mms import utils
from azureml.mlflow.deploy._mms.mms_client import MmsDeploymentClient

from carmodel.cloud.azureml_private import inference_server, parse_webservice_settings

ACI = {"computeType": "aci", "containerResourceRequirements": {"cpu": 2, "memoryInGB": 4}}


def test_azureml_mlflow_parses_the_settings_of_a_web_service() -> None:
    assert parse_webservice_settings("aci", ACI).cpu_cores == 2
    aks = ACI | {"computeType": "aks", "computeTargetName": "cars-aks", "numReplicas": 3}
    assert parse_webservice_settings("aks", aks).compute_target_name == "cars-aks"
    with pytest.raises(Exception, match="cpu_cores must be positive"):
        parse_webservice_settings("aci", {"containerResourceRequirements": {"cpu": -1}})


def test_the_environment_of_a_web_service_has_the_chosen_server_in_the_block_only() -> None:
    def server() -> list[str]:
        conda = utils.create_environment_from_conda_file("cars").python.conda_dependencies
        packages = [package for entry in conda["dependencies"] if isinstance(entry, dict) for package in entry["pip"]]
        return [package for package in packages if "inference-server" in package]

    with inference_server("azureml-inference-server-http==1.5.1"):
        assert server() == ["azureml-inference-server-http==1.5.1"]
    assert server() == ["azureml-inference-server-http~=0.6.1"]


def test_the_deployment_client_gets_keys_and_tokens_from_its_client_of_web_services() -> None:
    """`test_deploy_webservice` tests the requests of `webservice_headers`."""
    assert "_mms_client" in AzureMLDeploymentClient.__init__.__code__.co_names
    for method in (MmsDeploymentClient.list_service_keys, MmsDeploymentClient.get_service_token):
        assert "name" in signature(method).parameters
