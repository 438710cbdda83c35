"""Start the endpoint and the page together: ``make serve``, or the script ``carmodel-serve``."""

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow

from carmodel.errors import InputError
from carmodel.serving.about import about_model, draw_samples, examples_of
from carmodel.serving.page import create_page, page_url, run_page
from carmodel.serving.pretrained import package_pretrained
from carmodel.serving.registry import CANDIDATE, CHAMPION, PRETRAINED_NAME, newest_model
from carmodel.serving.scoring_server import HOST, require_free, running_server


def serve(model: str, port: int, page_host: str, page_port: int) -> None:
    """Serve a model and the page until the process receives SIGINT or SIGTERM.

    Args:
        model: URI of a packaged classifier; empty: see `choose_model`.
        port: port of the endpoint, which only this machine can reach.
        page_host: address of this machine where the page is shown.
        page_port: port of the page.

    Raises:
        InputError: no such model, or a port that is in use.
    """
    require_free(HOST, port)
    require_free(page_host, page_port)
    if port == page_port:
        raise InputError(f"the endpoint and the page cannot both use port {port}; choose another port for one of them")
    model = model or choose_model()
    about = about_model(model)
    print(f"loading {about['model']}")
    print(f"  {about['accuracy'] or 'its test accuracy is not known'}", flush=True)
    examples, samples = examples_of(model), draw_samples(about["classes"])
    with running_server(model, port) as (endpoint, process), ending_with(process):
        print(f"\n  the page       {page_url(page_host, page_port)}")
        print(f"  the endpoint   {endpoint}/invocations")
        print("  another model  make serve MODEL=models:/NAME@ALIAS")
        print("  Ctrl-C stops both\n", flush=True)
        run_page(create_page(endpoint, about, examples, samples), page_host, page_port)


@contextmanager
def ending_with(endpoint: subprocess.Popen[bytes]) -> Iterator[None]:
    """End this process if the endpoint ends within the block, so that the page never stays without it."""
    over = threading.Event()

    def watch() -> None:
        endpoint.wait()
        if not over.is_set():
            print("serve: the endpoint has ended; to start it again: make serve", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except SystemExit:
        if endpoint.poll() is not None:  # `watch` has ended this process, which is a failure
            raise SystemExit(1) from None
        raise
    finally:
        over.set()


def choose_model() -> str:
    """Return the URI of the newest champion among your own models, or of the pretrained network if there is none."""
    client = mlflow.MlflowClient()
    if champion := newest_model(client, CHAMPION, without=PRETRAINED_NAME):
        return champion
    if candidate := newest_model(client, CANDIDATE, without=PRETRAINED_NAME):
        print(f"none of your models is a champion; to serve the newest candidate: make serve MODEL={candidate}")
    else:
        print("you have no registered model of your own yet, so the pretrained network is served")
    return package_pretrained()


def main() -> None:
    """Read the command line and serve. If that is impossible, print why and exit with code 2."""
    parser = argparse.ArgumentParser(description="Serve a classifier with MLflow's server, and a page in front of it.")
    parser.add_argument(
        "--model", default="", help="such as models:/NAME@champion (default: the newest champion of your own models)"
    )
    parser.add_argument("--port", type=int, default=5001, help="port of the endpoint (%(default)s)")
    parser.add_argument("--page-host", default=HOST, help="0.0.0.0 shows the page to other machines (%(default)s)")
    parser.add_argument("--page-port", type=int, default=5002, help="port of the page (%(default)s)")
    given = parser.parse_args()
    # So that the endpoint ends with this process.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: sys.exit(0))
    try:
        serve(given.model, given.port, given.page_host, given.page_port)
    except InputError as error:
        print(f"serve: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
