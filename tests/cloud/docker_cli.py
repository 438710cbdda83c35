"""A stand-in of the `docker` command: checks its arguments, keeps images and containers in a file, builds and contains nothing.

Not a proof that an image builds or serves: `tests/cloud/test_docker_engine.py` asks a real engine that. What it says and how it
exits was compared with Docker 20.10's engine and 28.2's command. https://docs.docker.com/reference/cli/docker/
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

PING = """
import http.server, sys
class Ping(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/ping" else 404)
        self.end_headers()
    def log_message(self, *arguments): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ping).serve_forever()
"""


def install(folder: Path, faults: dict[str, str]) -> Path:
    """Put the command into a folder for PATH; its state. `faults`: what a command says when it fails."""
    folder.mkdir()
    state = folder / "state.json"
    state.write_text(json.dumps({"images": {}, "containers": {}, "faults": faults, "asked": []}))
    command = folder / "docker"
    command.write_text(f'#!/bin/sh\nDOCKER_STAND_IN={state} exec {sys.executable} {__file__} "$@"\n')
    command.chmod(0o755)
    return state


def image_ls(state: dict[str, Any], arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--filter", action="append", required=True)
    parser.add_argument("--format", choices=["{{.Repository}}:{{.Tag}}"], required=True)
    filters = dict(text.split("=", 1) for text in parser.parse_args(arguments).filter)
    key, _, value = filters["label"].partition("=")
    for image, labels in state["images"].items():
        if (
            key in labels
            and value in ("", labels[key])
            and image.split(":")[0] == filters["reference"].removesuffix(":*")
        ):
            print(image)


def build(state: dict[str, Any], arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tag", required=True)
    parser.add_argument("context", type=Path)
    asked = parser.parse_args(arguments)
    lines = (asked.context / "Dockerfile").read_text().splitlines()
    steps = [line for line in lines if re.match("[A-Z]+ ", line)]
    for number, step in enumerate(steps, 1):
        print(f"Step {number}/{len(steps)} : {step}")
        if copied := re.match(r"COPY (\S+) ", step):
            assert (asked.context / copied[1]).is_dir()
    if state["faults"].get("hold"):
        sys.stdout.flush()
        os.execvp("sleep", ["sleep", "600"])
    if said := state["faults"].get("build"):
        sys.exit(said)
    labels = dict(re.findall(r'^LABEL (\S+)="(.*)"$', "\n".join(lines), re.M))
    state["images"][asked.tag] = labels


def run(state: dict[str, Any], arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--detach", action="store_true", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--publish", required=True)
    parser.add_argument("image", choices=list(state["images"]))
    asked = parser.parse_args(arguments)
    host, port, inside = asked.publish.split(":")
    assert (host, inside) == ("127.0.0.1", "8080")
    if asked.name in state["containers"]:
        sys.exit(f'docker: Error response from daemon: Conflict. The container name "/{asked.name}" is already in use')
    container = {
        "image": asked.image,
        "port": port,
        "labels": state["images"][asked.image],
        "pid": 0,
        "state": "created",
    }
    state["containers"][asked.name] = container
    if said := state["faults"].get("run"):
        sys.exit(said)
    container["state"] = "exited" if state["faults"].get("logs") else "running"
    if container["state"] == "running":
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        container["pid"] = subprocess.Popen([sys.executable, "-c", PING, port], start_new_session=True, **quiet).pid
    print("0" * 64)


def ps(state: dict[str, Any], arguments: list[str]) -> None:
    name = re.fullmatch(r"--all --filter name=\^/(.+)\$ --quiet", " ".join(arguments))
    assert name
    if name[1] in state["containers"]:
        print(name[1])


def inspect(state: dict[str, Any], arguments: list[str]) -> None:
    (name,) = arguments
    container = state["containers"][name]
    bound = {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": container["port"]}]}
    facts = {"State": {"Status": container["state"]}, "Config": {"Labels": container["labels"]}}
    print(json.dumps([facts | {"HostConfig": {"PortBindings": bound}}]))


def rm(state: dict[str, Any], arguments: list[str]) -> None:
    force, name = arguments
    assert force == "--force"
    if (container := state["containers"].pop(name, None)) and container["pid"]:
        os.kill(container["pid"], 9)


def rmi(state: dict[str, Any], arguments: list[str]) -> None:
    (image,) = arguments
    if any(container["image"] == image for container in state["containers"].values()):
        sys.exit(f"Error response from daemon: conflict: unable to remove repository reference {image!r}: in use")
    del state["images"][image]


def logs(state: dict[str, Any], arguments: list[str]) -> None:
    assert arguments[:2] == ["--tail", "5"] and arguments[2] in state["containers"]
    print(state["faults"]["logs"], file=sys.stderr)


def version(state: dict[str, Any], arguments: list[str]) -> None:
    assert arguments == ["--format", "{{.Server.Version}}"]
    print("20.10.24")


def main() -> None:
    file = Path(os.environ["DOCKER_STAND_IN"])
    state = json.loads(file.read_text())
    state["asked"].append(sys.argv[1:])
    commands = {"images": image_ls} | {c.__name__: c for c in (build, run, ps, inspect, rm, rmi, logs, version)}
    try:
        if sys.argv[1] in ("ps", "rmi") and (said := state["faults"].get(sys.argv[1])):
            sys.exit(said)
        commands[sys.argv[1]](state, sys.argv[2:])
    finally:
        file.write_text(json.dumps(state))


if __name__ == "__main__":
    main()
