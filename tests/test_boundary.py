"""The boundary: every outcome has its exit code, and at most one line says what it was."""

import errno
import io
import os
import py_compile
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor
from importlib.machinery import SourcelessFileLoader
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from robustness import cli
from robustness.boundary import log_beside, run
from robustness.errors import (
    MESSAGE_LENGTH,
    OperationalError,
    SoundnessError,
    UsageError,
    one_line,
    os_failure,
)
from robustness.terminal import Terminal


def raising(error: BaseException):
    def command() -> None:
        raise error

    return command


def write_to_a_full_disk() -> None:
    with open("/dev/full", "w") as file:
        file.write("x")


def ask_a_closed_store() -> None:
    sqlite3.connect("/nonexistent/store.sqlite")


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert len(captured.err) <= 301
    return captured.err


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (lambda: None, 0, ""),
        (lambda: 2, 2, ""),
        (raising(UsageError("expected a, got b; do c")), 2, "error: expected a, got b; do c"),
        (raising(SoundnessError("image 3")), 1, "soundness failure: image 3"),
        (raising(OperationalError("the disk")), 3, "failed: the disk"),
        (write_to_a_full_disk, 3, "No space left on device"),
        (ask_a_closed_store, 3, "unable to open database file"),
        (lambda: torch.empty(10**15), 3, "expected enough memory"),
        (lambda: bytearray(10**18), 3, "expected enough memory"),
        (raising(BrokenExecutor()), 3, "worker"),
        (raising(OSError(errno.EDQUOT, "Disk quota exceeded")), 3, "Disk quota exceeded"),
        (raising(KeyError("nothing")), 70, "defect of this package, please report it: KeyError"),
        (raising(RecursionError("too deep")), 70, "RecursionError"),
        (raising(SystemExit(0)), 70, "SystemExit: 0"),
        (raising(KeyboardInterrupt()), 130, "interrupted"),
        (lambda: 130, 130, "interrupted"),
    ],
)
def test_every_outcome_has_its_exit_code_and_at_most_one_line(
    command, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == code
    if words:
        assert words in line_of(capsys)
    else:
        assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), OSError(errno.EIO, "I/O")])
def test_the_traceback_goes_to_a_log_beside_the_report(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        log_beside(tmp_path)
        raise error

    run(command)
    named = re.search(r"; log: (\S+)\n", line_of(capsys))
    assert named is not None
    log = Path(named[1])
    assert log.parent == tmp_path
    assert "Traceback (most recent call last)" in log.read_text(encoding="utf-8")


def test_the_log_goes_elsewhere_where_there_is_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run(raising(KeyError("x")))
    assert [f"; log: {file}\n" in line_of(capsys) for file in tmp_path.iterdir()] == [True]


def test_a_log_that_cannot_be_written_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert run(raising(KeyError("x"))) == 70
    assert line_of(capsys).endswith("; no log (No such file or directory)\n")


def test_a_traceback_is_printed_on_request_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(UsageError("expected a, got b; do c")), debug=True) == 2
    assert "Traceback" in capsys.readouterr().err


def test_standard_output_that_is_full_is_a_failure_of_the_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.run(lambda: cli.app(["models"], standalone_mode=False)) == 3
    assert "No space left on device" in line_of(capsys)


# The command with an application in place that answers at once, and imports no torch.
ANSWER = """
import sys, types
from robustness.__main__ import main
from robustness.terminal import answers

application = types.ModuleType("robustness.cli")
application.app = lambda arguments, standalone_mode: answers.print("a table of models")
sys.modules["robustness.cli"] = application
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        ("> /dev/full", 3, "No space left on device"),
        ("> /dev/full 2> /dev/full", 3, ""),
        (">&-", 0, ""),
        ("| true; exit ${PIPESTATUS[0]}", 0, ""),
    ],
)
def test_the_interpreter_adds_nothing_at_its_end(redirected: str, code: int, said: str) -> None:
    program = shlex.quote(ANSWER) if redirected != "> /dev/full" else "models"
    how = "-m robustness" if program == "models" else "-c"
    command = f"{sys.executable} {how} {program} {redirected}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.count("\n") == bool(said)
    assert said in done.stderr


def test_a_message_is_one_line_without_control_characters_whatever_it_quotes() -> None:
    message = str(UsageError("expected a name, got \x1b[31m\n" + 10**6 * "x" + "\u202e; do c"))
    assert message.isprintable()
    assert message.startswith(r"expected a name, got \x1b[31m xxx")
    assert message.endswith(r"xxx\u202e; do c")
    assert len(message) == MESSAGE_LENGTH


@pytest.mark.slow
@given(text=st.text())
def test_a_line_is_never_longer_than_it_may_be(text: str) -> None:
    line = one_line(text * 40, 60)
    assert len(line) <= 60
    assert line.isprintable()


def test_a_message_of_many_long_words_is_cut_at_once() -> None:
    started = time.perf_counter()
    assert len(one_line("long-words-and-more-of-them " * 100_000)) == MESSAGE_LENGTH
    assert time.perf_counter() - started < 1


def test_a_line_that_is_short_enough_is_left_as_it_is() -> None:
    assert one_line("expected a, got b; do c") == "expected a, got b; do c"


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, OperationalError), (errno.ENOENT, UsageError)]
)
def test_an_error_of_the_operating_system_is_the_machines_or_the_callers(
    number: int, kind: type[Exception]
) -> None:
    failure = os_failure(OSError(number, "said so"), "a file", "name another")
    assert type(failure) is kind
    assert "expected a file, got: said so" in str(failure)


def test_the_terminal_is_steered_by_no_text_and_keeps_its_own_styles() -> None:
    stream = io.StringIO()
    terminal = Terminal(file=stream, force_terminal=True, color_system="standard", width=60)
    table = Table()
    table.add_column("model")
    table.add_row("\x1b[2Jgone\u202e\nnext", style="red")
    terminal.print(table)
    shown = stream.getvalue()
    assert "\x1b[31m" in shown
    assert "\x1b[2J" not in shown
    assert r"\x1b[2J" in shown


# The limit is set when all is there but the libraries: Python itself always has enough.
LITTLE_MEMORY = """
import resource, sys
from robustness.__main__ import main

with open("/proc/self/statm") as file:
    mapped = int(file.read().split()[0]) * resource.getpagesize()
limit = mapped + {megabytes} * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.argv[1:] = ["models"]
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [20, 100])
def test_a_command_without_memory_for_its_libraries_says_so(megabytes: int) -> None:
    # Without what measures coverage, which needs memory of its own.
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY.format(megabytes=megabytes)],
        env=environment | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "memory" in done.stderr


def test_a_compiled_file_that_a_full_disk_cut_is_the_environments_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut.py").write_text("numbers = [1, 2, 3]\n")
    compiled = Path(py_compile.compile(str(tmp_path / "cut.py"), str(tmp_path / "cut.pyc")))
    compiled.write_bytes(compiled.read_bytes()[:-9])
    load = SourcelessFileLoader("cut", str(compiled)).get_code
    assert run(lambda: load("cut")) == 3
    assert "__pycache__" in line_of(capsys)


def test_a_full_standard_error_leaves_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert run(raising(UsageError("expected a, got b; do c"))) == 2
        assert run(raising(KeyError("x")), debug=True) == 70


def test_the_report_folder_of_evaluate_is_where_its_log_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "digits-quick", "--out", str(tmp_path)]
    monkeypatch.setattr("robustness.api.evaluate", lambda *_, **__: raising(KeyError("x"))())
    assert cli.run(lambda: cli.app(arguments, standalone_mode=False)) == 70
    assert f"; log: {tmp_path}/fault-" in line_of(capsys)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_a_closed_terminal_and_a_polite_kill_interrupt_a_command(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    number = getattr(signal, name)
    # What measures coverage listens too.
    kept = signal.signal(number, signal.SIG_DFL)
    try:
        assert run(lambda: os.kill(os.getpid(), number)) == 130
        assert line_of(capsys).startswith("interrupted")
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, kept)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(lambda: os.kill(os.getpid(), signal.SIGHUP)) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
