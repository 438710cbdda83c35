"""Starting ranks and ending them: what is checked before, and what happens when one dies."""

import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from carmodel.errors import InputError
from carmodel.training.launch import Host, RankError, check, local_slots, run

ROOT = Path(__file__).resolve().parents[1]

needs_horovod = pytest.mark.skipif(find_spec("horovod") is None, reason="Horovod is not installed: make horovod")


def test_missing_horovod_is_an_error_that_names_the_make_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "horovod", None)
    with pytest.raises(InputError, match="make horovod"):
        check(2, "")


@needs_horovod
def test_without_hosts_this_machine_has_a_slot_a_gpu_or_a_core() -> None:
    assert check(1, "") == [Host("localhost", 1)]
    assert check(0, "") == [Host("localhost", 1)]
    with pytest.raises(InputError, match=f"has {local_slots()} slots.*hosts=localhost:4096"):
        check(4096, "")


@needs_horovod
def test_hosts_say_how_many_slots_they_have_and_are_filled_in_order() -> None:
    assert check(0, "localhost:3") == [Host("localhost", 3)]
    assert check(3, "localhost:2,127.0.0.1:2") == [Host("localhost", 2), Host("127.0.0.1", 1)]
    assert check(2, "localhost:2,nowhere.invalid:2") == [Host("localhost", 2)], "an unused host need not be reachable"
    with pytest.raises(InputError, match="processes=5.*hosts=localhost:2 has 2 slots"):
        check(5, "localhost:2")


@needs_horovod
def test_a_host_that_cannot_be_reached_is_an_error_that_names_it() -> None:
    with pytest.raises(InputError, match=r"host nowhere\.invalid cannot be used"):
        check(0, "localhost:1,nowhere.invalid:1")


@needs_horovod
def test_a_rank_that_fails_ends_the_job_and_is_named_with_its_last_lines(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`test_distributed_training` kills a rank."""
    with pytest.raises(RankError) as error:
        run("tests.launch_ranks:die", ["raise", str(tmp_path)], [Host("localhost", 2)], tmp_path / "logs")
    assert time.time() - (tmp_path / "pid-1").stat().st_mtime < 60
    assert str(error.value).startswith("rank 1 of 2, on localhost, failed with exit code 1; its last lines:\n")
    assert "ValueError: row 17 is bad" in str(error.value)
    assert not alive(tmp_path)
    # Without the end of the line, which rank 0 may be ended before.
    assert "[0] rank 0 has begun" in capfd.readouterr().out
    assert "rank 0 has begun" in (tmp_path / "logs" / "rank-0.log").read_text()


@needs_horovod
def test_each_rank_knows_its_place_and_gets_the_variables_that_are_sent_along(tmp_path: Path) -> None:
    run("tests.launch_ranks:report", [str(tmp_path)], [Host("localhost", 2)], tmp_path / "logs", {"GREETING": "hello"})
    assert [(tmp_path / f"place-{rank}").read_text() for rank in range(2)] == [
        "2 0 2 localhost hello",
        "2 1 2 localhost hello",
    ]


@needs_horovod
def test_when_the_launcher_is_killed_no_rank_stays_behind(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from carmodel.training.launch import Host, run
run("tests.launch_ranks:wait", [{str(tmp_path)!r}], [Host("localhost", 2)], Path({str(tmp_path / "logs")!r}))
"""
    launcher = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 2, 60)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    wait_until(lambda: not alive(tmp_path), 30)


def alive(folder: Path) -> list[int]:
    """Ranks that still run, of those that left their process id in a folder."""
    return [pid for pid in (int(file.read_text()) for file in folder.glob("pid-*")) if Path(f"/proc/{pid}").exists()]


def wait_until(done, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)
