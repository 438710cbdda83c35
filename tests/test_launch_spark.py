"""Ranks on the executors of a Spark cluster: two executors, each a process of its own, on this machine."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.test_launch_hosts import train_small

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("horovod") is None, reason="Horovod is not installed: make horovod"),
    pytest.mark.skipif(find_spec("pyspark") is None, reason="PySpark is not installed: make spark"),
]


@pytest.fixture
def spark_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark's settings for a master and two workers of a core each; their files go to the test's folder."""
    import pyspark

    home = tmp_path / "spark"
    home.mkdir()
    for part in Path(pyspark.__file__).parent.iterdir():
        (home / part.name).symlink_to(part)
    monkeypatch.setenv("SPARK_HOME", str(home))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    options = "--master local-cluster[2,1,1024] --conf spark.ui.enabled=false pyspark-shell"
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", options)


@pytest.mark.usefixtures("spark_cluster")
def test_a_training_on_two_executors_is_one_run(tmp_path: Path, commands: str) -> None:
    train_small(tmp_path, commands, "--launcher", "spark", "--processes", "2")
