"""Use private interfaces of azureml-mlflow. Each has a test in tests/cloud/test_private_interfaces.py.

If an upgrade of azureml-mlflow changes one of them, its test fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from azureml.mlflow.deploy import AzureMLDeploymentClient
from azureml.mlflow.deploy._mms import utils
from azureml.mlflow.deploy._mms.webservice.aci.aci import AciServiceDeploymentConfiguration
from azureml.mlflow.deploy._mms.webservice.aks.aks import AksServiceDeploymentConfiguration

_PARSERS = {"aci": AciServiceDeploymentConfiguration, "aks": AksServiceDeploymentConfiguration}


def parse_webservice_settings(target: str, settings: dict[str, Any]) -> Any:
    """Parse the settings of a web service with azureml-mlflow's own parser, and return its configuration object.

    The public client parses the settings only while it creates the service.

    Raises:
        Exception: the settings are invalid. The parser raises exceptions of many types.
    """
    return _PARSERS[target]._create_deploy_config_from_dict(settings)


@contextmanager
def inference_server(requirement: str) -> Iterator[None]:
    """Let azureml-mlflow install `requirement` as the inference server of the services that are deployed in this block.

    The public client has no setting for it.
    """
    packages = utils.INFERENCE_REQUIRED_PACKAGE_LIST
    before = packages[:]
    packages[:] = [requirement]
    try:
        yield
    finally:
        packages[:] = before


def webservice_headers(client: AzureMLDeploymentClient, service: dict[str, Any]) -> dict[str, str]:
    """Return the headers of a request to a web service, with its key or token.

    The public client uses the key only in `predict`, which hides the status of a failed request and has no time limit.
    """
    services, name = client._mms_client, service["name"]
    if service["authEnabled"]:
        return {"Authorization": f"Bearer {services.list_service_keys(name).primary_key}"}
    if service.get("aadAuthEnabled"):
        return {"Authorization": f"Bearer {services.get_service_token(name).access_token}"}
    return {}
