"""The endpoint and the page in front of it, begun and ended together: ``make serve``."""

import argparse
import signal
import sys

import mlflow

from carmodel.errors import InputError
from carmodel.serving.examples import examples_of, require_classifier
from carmodel.serving.page import show
from carmodel.serving.pretrained import package_pretrained
from carmodel.serving.registry import newest_candidate
from carmodel.serving.server import HOST, require_free, served


def serve(model: str, port: int, page_host: str, page_port: int) -> None:
    """Serve a model and the page until the process is told to end.

    Args:
        model: URI of a packaged classifier; empty: the newest candidate of the registry, or the network of
            ``pretrained/`` where there is none.
        port: of the endpoint, which only this machine can reach.
        page_host: address of this machine to show the page at.
        page_port: of the page.

    Raises:
        InputError: no such model, or a port that is taken.
    """
    client = mlflow.MlflowClient()
    require_free(page_host, page_port)
    if port == page_port:
        raise InputError(f"the endpoint and the page can't both be at port {port}; choose another for one of them")
    # One's own newest model; the network that ships with the clone where there is none.
    model = model or newest_candidate(client) or package_pretrained()
    require_classifier(model)
    examples = examples_of(model)
    print(f"loading {model} …", flush=True)
    with served(model, port) as (address, _):
        print(f"\n  the page      http://{'localhost' if page_host == HOST else page_host}:{page_port}", flush=True)
        print(f"  the endpoint  {address}/invocations\n  Ctrl-C ends both\n", flush=True)
        show(address, page_host, page_port, model, examples)


def main() -> None:
    """Read the command line and serve; what can't be done ends with exit code 2 and a line that says why."""
    parser = argparse.ArgumentParser(description="Serve a classifier with MLflow's server, and a page in front of it.")
    parser.add_argument("--model", default="", help="such as models:/NAME@candidate (default: the newest candidate)")
    parser.add_argument("--port", type=int, default=5001, help="of the endpoint (%(default)s)")
    parser.add_argument("--page-host", default=HOST, help="0.0.0.0 shows the page to other machines (%(default)s)")
    parser.add_argument("--page-port", type=int, default=5002, help="of the page (%(default)s)")
    given = parser.parse_args()
    # So that the server ends with this process when it is told to terminate, too.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: sys.exit(0))
    try:
        serve(given.model, given.port, given.page_host, given.page_port)
    except InputError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
