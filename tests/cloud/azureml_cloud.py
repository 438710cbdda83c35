"""Azure with one Azure ML workspace, for as long as a test wants it: every service that jobs and their clients ask."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI

from tests.cloud.azureml_arm import Resources, add_resources
from tests.cloud.azureml_jobs import add_jobs, add_management
from tests.cloud.azureml_runs import Jobs, add_history
from tests.cloud.azureml_tracking import Workspace, management_service, workspace_service
from tests.cloud.blobs import Blobs
from tests.cloud.containers import Containers, container_service
from tests.cloud.identity import Identity, login_service
from tests.cloud.mlflow_server import mlflow_server
from tests.cloud.proxy import Proxy, lead
from tests.cloud.stand_in import Authority, Wire, serve


class Azure(NamedTuple):
    """What is there.

    Attributes:
        workspace: tracking, storage, identity.
        jobs: those that run or ran.
        resources: what was created through Azure Resource Manager.
        region, management, storage, login: the services.
        proxy: that leads to them.
        environment: of a client that is signed in.
    """

    workspace: Workspace
    jobs: Jobs
    resources: Resources
    region: Wire
    management: Wire
    storage: Wire
    login: Wire
    proxy: Proxy
    environment: dict[str, str]


@contextmanager
def azure(folder: Path, authority: Authority) -> Iterator[Azure]:
    """Run it, with its state in `folder`."""
    with ExitStack() as stack:
        for name in ("tracking", "jobs", "home"):
            (folder / name).mkdir()
        identity = Identity()
        workspace = Workspace(stack.enter_context(mlflow_server(folder / "tracking")), identity, Blobs())
        jobs = Jobs(workspace, folder / "tracking" / "mlflow.db", folder / "jobs", {})
        resources = Resources(jobs, Containers(workspace.blobs))
        region, management = FastAPI(), management_service()
        add_history(region, jobs)
        add_jobs(region, jobs)
        region.mount("/", workspace_service(workspace))
        add_management(management, jobs)
        add_resources(management, resources)
        apps = {
            r".*\.api\.azureml\.ms": region,
            r"management\.azure\.com": management,
            r".*\.blob\.core\.windows\.net": container_service(resources.containers),
            r"login\.microsoftonline\.com": login_service(identity),
        }
        wires = {host: stack.enter_context(serve(app, authority)) for host, app in apps.items()}
        proxy = stack.enter_context(lead(wires))
        network = proxy.environment | authority.environment | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        jobs.environment.update(network)
        own = {
            "MLFLOW_TRACKING_URI": workspace.uri,
            "HOME": str(folder / "home"),  # azureml-core remembers there where its services are
        }
        try:
            yield Azure(workspace, jobs, resources, *wires.values(), proxy, network | identity.environment | own)
        finally:
            for job in jobs.running.values():
                job.cancel()
