"""Azure with one Azure ML workspace: every service that its clients and jobs ask, with one state."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.cloud.azureml_arm import Resources, add_resources
from tests.cloud.azureml_jobs import add_jobs, add_management
from tests.cloud.azureml_online import Online, add_online
from tests.cloud.azureml_runs import Jobs, add_history
from tests.cloud.azureml_services import Services, add_services
from tests.cloud.azureml_tracking import Workspace, add_tracking, guarded
from tests.cloud.blobs import Blobs, blob_service
from tests.cloud.identity import Identity, login_service
from tests.cloud.mlflow_server import Server
from tests.cloud.proxy import Proxy, lead
from tests.cloud.stand_in import Authority, Wire, serve
from tests.project import environment


class Azure(NamedTuple):
    """A running cloud.

    Attributes:
        workspace: tracking, storage and identity.
        jobs: those that run or ran.
        resources: what was created through Azure Resource Manager.
        services: web services on ACI and AKS.
        online: online endpoints.
        region, management, storage, login: the services.
        proxy: leads to them.
        environment: all variables of a client that is signed in.
    """

    workspace: Workspace
    jobs: Jobs
    resources: Resources
    services: Services
    online: Online
    region: Wire
    management: Wire
    storage: Wire
    login: Wire
    proxy: Proxy
    environment: dict[str, str]


@contextmanager
def azure(folder: Path, server: Server, authority: Authority, commands: str) -> Iterator[Azure]:
    """Run it until the context ends.

    Args:
        folder: for jobs and the clients' home.
        server: keeps the workspace's runs and registry.
        authority: signs the certificates.
        commands: folder of the `python` that runs jobs.
    """
    (folder / "home").mkdir()
    workspace = Workspace(server.url, Identity(), Blobs())
    jobs = Jobs(workspace, server.folder / "mlflow.db", folder / "jobs", commands)
    resources, services = Resources(jobs), Services(workspace)
    online = Online(workspace.scope)
    jobs.folder.mkdir()
    region, management = guarded(workspace), guarded(workspace)
    add_history(region, jobs)
    add_jobs(region, jobs)
    add_services(region, services)
    add_tracking(region, workspace)
    add_management(management, workspace)
    add_resources(management, resources)
    add_online(management, online)
    apps = {
        r".*\.api\.azureml\.ms": region,
        r"management\.azure\.com": management,
        r".*\.blob\.core\.windows\.net": blob_service(workspace.blobs),
        r"login\.microsoftonline\.com": login_service(workspace.identity),
    }
    with ExitStack() as stack:
        wires = {host: stack.enter_context(serve(app, authority)) for host, app in apps.items()}
        proxy = stack.enter_context(lead(wires))
        network = proxy.environment | authority.environment
        jobs.environment.update(network, MLFLOW_DISABLE_TELEMETRY="true")
        # azureml-core remembers in its home where its services are.
        own = {"MLFLOW_TRACKING_URI": workspace.uri, "HOME": str(folder / "home")}
        client = environment(commands, **network, **workspace.identity.environment, **own)
        yield Azure(workspace, jobs, resources, services, online, *wires.values(), proxy, client)
        for job in jobs.running.values():
            job.cancel()
