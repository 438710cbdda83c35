"""Ranks on two hosts by ssh: two loopback addresses of this machine, with an sshd of the test's own (`make test-hosts`)."""

import getpass
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest

from carmodel.errors import InputError
from carmodel.training.launch import Host, RankError, check, run
from tests.stores import store_of
from tests.test_launch import ROOT, alive, wait_until
from tests.tiny import free_port
from tests.tracked import new_database

pytestmark = [pytest.mark.hosts, pytest.mark.slow]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """The hosts "first" and "second", which `ssh` finds by a configuration of the test's own."""
    sshd = os.environ.get("CARMODEL_SSHD") or shutil.which("sshd", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    assert sshd, "test-hosts needs an sshd: apt-get install openssh-server"
    folder = tmp_path_factory.mktemp("ssh")
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    port = free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.2\nListenAddress 127.0.0.3\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nUsePAM no\n"
    )
    addresses = {"first": "127.0.0.2", "second": "127.0.0.3"}
    (folder / "ssh_config").write_text(
        "".join(f"Host {name}\n  HostName {address}\n" for name, address in addresses.items())
        + f"Host *\n  Port {port}\n  User {getpass.getuser()}\n  IdentityFile {folder}/user\n"
        "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    (folder / "bin").mkdir()
    wrapper = folder / "bin" / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([sshd, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{wrapper.parent}{os.pathsep}{path}"
    try:
        wait_until(lambda: subprocess.run(["ssh", "second", "true"], check=False).returncode == 0, 20)
        yield [Host("first", 2), Host("second", 1)]
    finally:
        os.environ["PATH"] = path
        server.terminate()
        server.wait()


def test_reachable_hosts_are_accepted_and_one_without_the_project_is_named(
    hosts: list[Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check(3, "first:2,second:2") == hosts
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="host first cannot be used: .*No module named 'carmodel'"):
        check(2, "first:1,second:1")


def test_the_ranks_of_a_host_share_what_is_done_once_a_machine(hosts: list[Host], tmp_path: Path) -> None:
    run("tests.launch_ranks:machines", [str(tmp_path)], hosts, tmp_path / "logs")
    assert [(tmp_path / f"did-{rank}").read_text() for rank in range(3)] == ["0", "0", "2"]


def test_a_rank_that_dies_on_another_host_ends_the_job(hosts: list[Host], tmp_path: Path) -> None:
    with pytest.raises(RankError, match="rank 1 of 2, on second, ended by a signal"):
        run("tests.launch_ranks:die", ["kill", str(tmp_path)], [Host("first", 1), Host("second", 1)], tmp_path / "logs")
    assert time.time() - (tmp_path / "pid-1").stat().st_mtime < 60
    wait_until(lambda: not alive(tmp_path), 10)


def test_when_the_launcher_is_killed_no_rank_stays_behind_on_any_host(hosts: list[Host], tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from carmodel.training.launch import Host, run
hosts = [Host("first", 2), Host("second", 1)]
run("tests.launch_ranks:wait", [{str(tmp_path)!r}], hosts, Path({str(tmp_path / "logs")!r}))
"""
    launcher = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 3, 60)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    wait_until(lambda: not alive(tmp_path), 30)


@pytest.mark.usefixtures("hosts")
def test_a_training_on_two_hosts_is_one_run(tmp_path: Path, commands: str) -> None:
    train_small(tmp_path, commands, "--hosts", "first:1,second:1")


def train_small(folder: Path, commands: str, *parameters: str) -> None:
    """Train on two ranks, started as the parameters say, and check the run."""
    numbers = np.random.default_rng(0)
    images, labels = numbers.integers(0, 256, (40, 32, 32, 3), np.uint8), numbers.integers(0, 3, 40)
    store_of(folder / "train.h5", images, labels, ["a", "b", "c"], np.arange(40) % 5 == 0)
    uri = new_database(folder)
    client = mlflow.MlflowClient(uri)
    common = ["--store_uri", str(folder), "--set", "train.depth=14,train.width=4,train.epochs=2,train.batch_size=8"]
    done = subprocess.run(
        [f"{commands}/python", "-m", "steps.train", *common, *parameters],
        cwd=ROOT,
        env=os.environ | {"MLFLOW_TRACKING_URI": uri, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "[0] epoch 2/2" in done.stdout
    (train,) = client.search_runs(["0"])
    assert train.info.status == "FINISHED"
    assert {"val_loss", "images_per_second_rank_1", "all_reduce_seconds_rank_1"} <= set(train.data.metrics)
    logs = {file.path for file in client.list_artifacts(train.info.run_id, "ranks")}
    assert logs == {"ranks/rank-0.log", "ranks/rank-1.log"}
