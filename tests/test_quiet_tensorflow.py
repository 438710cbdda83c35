"""What the import of TensorFlow prints is hidden, unless it fails. A small module stands in for TensorFlow here."""

import os
import subprocess
import sys
from pathlib import Path

PRINTS = "import os; os.write(2, b'Unable to register cuDNN factory\\n')\n"
FAILS = "raise ImportError('a library is missing')\n"


def import_quietly(folder: Path, tensorflow: str) -> subprocess.CompletedProcess[str]:
    (folder / "tensorflow.py").write_text(tensorflow)
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{Path.cwd()}"}
    program = "import sys, steps.quiet_tensorflow; print('afterwards', file=sys.stderr)"
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_messages_of_the_import_are_hidden_and_later_ones_are_not(tmp_path: Path) -> None:
    assert import_quietly(tmp_path, PRINTS).stderr == "afterwards\n"


def test_a_failed_import_shows_everything(tmp_path: Path) -> None:
    printed = import_quietly(tmp_path, PRINTS + FAILS).stderr
    assert "Unable to register cuDNN factory" in printed
    assert "ImportError: a library is missing" in printed
