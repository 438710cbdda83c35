"""Commands that start at once: an interpreter imports the large libraries, and each `python` or `mlflow` is a fork of it.

`mlflow run` asks Databricks for the state of a job every second, not every half minute.

Nothing of this project is imported beforehand, so a command runs the code in its working directory. A command that needs
a fresh interpreter (options, PYTHONPATH, another Keras backend) gets one.
"""

import atexit
import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIBRARIES = (
    *("numpy", "pandas", "cv2", "h5py", "scipy.optimize", "sklearn.metrics", "matplotlib.pyplot", "PIL.Image", "yaml"),
    *("tensorflow", "keras", "mlflow.cli", "mlflow.projects.databricks", "mlflow.tensorflow", "mlflow.pyfunc"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store", "pydantic"),
)
AZURE = ("azure.identity", "azure.storage.blob", "azureml.mlflow")
# A program that has its command run by a fork, passes signals on to it, and ends as it does.
PROGRAM = """\
#!{python} -IS
import json, os, signal, socket, struct, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
ours = name == "mlflow" or words[:1] in (["-m"], ["-c"]) or (words and not words[0].startswith("-"))
if not ours or os.environ.keys() & {{"PYTHONPATH", "KERAS_BACKEND"}}:
    os.execv({python!r}, [{python!r}, *(["-m", "mlflow"] if name == "mlflow" else []), *words])
passed = (signal.SIGINT, signal.SIGTERM)
signal.pthread_sigmask(signal.SIG_BLOCK, passed)
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    command = json.dumps([name, words, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [struct.pack("!I", len(command))], [0, 1, 2])
    server.sendall(command)
    (process,) = struct.unpack("!i", server.recv(4, socket.MSG_WAITALL))
    for number in passed:
        signal.signal(number, lambda number, frame: os.kill(process, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed)
    (code,) = struct.unpack("!i", server.recv(4, socket.MSG_WAITALL))
if -code in passed:
    signal.signal(-code, signal.SIG_DFL)
if code < 0:
    os.kill(os.getpid(), -code)
os._exit(code)
"""


@contextmanager
def preloaded(folder: Path) -> Iterator[str]:
    """Start the interpreter and yield the folder of its commands, which comes first in PATH.

    Args:
        folder: an empty one, with a short path: a Unix socket's has 107 bytes at most.
    """
    address = str(folder / "socket")
    for name in ("python", "mlflow"):
        (folder / name).write_text(PROGRAM.format(python=sys.executable, address=address))
        (folder / name).chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        # Commands may connect at once: they wait until the libraries are imported.
        listener.bind(address)
        listener.listen(64)
        command = [sys.executable, __file__, str(listener.fileno())]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()], start_new_session=True)
    try:
        yield str(folder)
    finally:
        process.communicate(timeout=60)  # it ends with its standard input


def main(listener: socket.socket) -> None:
    """Import the libraries, then run each command in a fork, which returns from here to end as a program does."""
    atexit.register(leave)  # the first that is registered is called last
    for library in (*LIBRARIES, *AZURE):
        try:
            importlib.import_module(library)
        except ImportError:
            assert library in AZURE, library
    projects = importlib.import_module("mlflow.projects.databricks")
    projects.DatabricksSubmittedRun.POLL_STATUS_INTERVAL = 1
    assert not {"carmodel", "steps"} & sys.modules.keys()
    gc.freeze()  # a fork copies the pages that it writes to
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            return serve(connection)
        connection.close()
    return None


def serve(connection: socket.socket) -> None:
    """Run one command in a fork of this process, and send its exit code."""
    header, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
    (length,) = struct.unpack("!I", header)
    name, words, folder, environment = json.loads(connection.recv(length, socket.MSG_WAITALL))
    if process := os.fork():
        connection.sendall(struct.pack("!i", process))
        ended = os.pidfd_open(process)
        if ended not in select.select([ended, connection], [], [])[0]:
            os.killpg(process, signal.SIGKILL)  # the program is gone
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        connection.sendall(struct.pack("!i", code))
        os._exit(0)
    connection.close()
    os.setpgrp()
    for own, descriptor in enumerate(descriptors):
        os.dup2(descriptor, own)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    tempfile.tempdir = None
    importlib.import_module("numpy").random.seed()
    logging.getLogger("mlflow").setLevel(environment.get("MLFLOW_LOGGING_LEVEL", "INFO"))
    try:
        run(name, words)
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        exit_code.append(status if isinstance(status, int) else int(status is not None))
        raise


exit_code: list[int] = []


def leave() -> None:
    """End without the seconds in which Python takes large libraries down."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(exit_code[-1] if exit_code else 0)


def run(name: str, words: list[str]) -> None:
    """Run `python` or `mlflow` with these arguments, as the interpreter would."""
    sys.path[0] = os.getcwd()  # noqa: PTH109
    if name == "mlflow":
        words = ["-m", "mlflow", *words]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
