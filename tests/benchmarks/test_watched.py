"""What processes of a command have taken is told of each."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from watched import Use, use_of, watched

PROGRAM = """
import subprocess, sys, time
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"], check=True)
    time.sleep(0.5)
else:
    held = b"x" * (100 * 2**20)
    del held
    while time.process_time() < 0.5:
        pass
    time.sleep(0.5)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="processes are read from /proc")
def test_memory_that_was_given_back_and_processor_time_are_those_of_each_process(
    tmp_path: Path,
) -> None:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    parent, child = sorted(watched([sys.executable, str(file)], 0.05), key=lambda use: use.seconds)
    assert child.kibibytes >= 100 * 1024 > parent.kibibytes > 1024
    assert 0.4 <= child.seconds < 2
    with pytest.raises(subprocess.CalledProcessError):
        watched([sys.executable, "-c", "raise SystemExit(3)"], 0.05)


def test_a_process_that_is_ending_says_nothing_of_its_memory(tmp_path: Path) -> None:
    fields = ["R", "1", "1", "7", *["0"] * 7, "3", "2", "5", *["0"] * 20]
    (tmp_path / "stat").write_text(f"12 (a name) {' '.join(fields)}")
    (tmp_path / "status").write_text("Name: a\nVmHWM:\t2048 kB\n")
    found = use_of(tmp_path, 7)
    assert isinstance(found, Use)
    assert found.kibibytes == 2048
    assert use_of(tmp_path, 8) is None
    (tmp_path / "status").write_text("Name: a\n")
    assert use_of(tmp_path, 7) is None
