"""Files are written whole or not at all, and a full disk is the machine's failure."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from robustness import cli
from robustness.attacks import Status
from robustness.errors import OperationalError, UsageError
from robustness.evaluation.jobs import Result
from robustness.evaluation.jobs.attack import Row
from robustness.evaluation.plan import Job
from robustness.evaluation.store import Store
from robustness.files import write_file
from robustness.threat import Norm
from robustness.zoo import find_entry


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """As on a disk with `size` bytes left: no file of this process grows beyond."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Else Python would leave halves of what it compiles meanwhile to the processes after.
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        sys.dont_write_bytecode = written


def call(*arguments: str) -> int:
    return cli.run(lambda: cli.app(list(arguments), standalone_mode=False))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


def test_a_file_that_cannot_be_written_whole_is_left_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "radii.csv"
    write_file(file, b"what was there")
    with files_up_to(100), pytest.raises(OperationalError, match="File too large"):
        write_file(file, bytes(1000))
    assert file.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [file]


def test_a_full_device_is_the_machines_failure_and_a_folder_the_callers() -> None:
    with pytest.raises(OperationalError, match="No space left on device"):
        write_file(Path("/dev/full"), b"x")
    with pytest.raises(UsageError, match="Is a directory"):
        write_file(Path("/"), b"x")


@pytest.mark.slow
def test_certify_on_a_full_disk_ends_with_one_line_and_leaves_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("certify", "digits/lyanet", "--samples", "20", "--workers", "1", "--csv")
    file = tmp_path / "radii.csv"
    assert call(*arguments, str(file)) == 0
    before = file.read_bytes()
    capsys.readouterr()
    with files_up_to(len(before) // 2):
        assert call(*arguments, str(file)) == 3
    assert "File too large" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
    assert call(*arguments, "/dev/full") == 3
    assert "No space left on device" in capsys.readouterr().err


def test_train_on_a_full_disk_ends_with_one_line_and_goes_on_later(
    recipe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = (recipe_folder / "recipe.toml").read_bytes()
    with files_up_to(1000):
        assert call("train", str(recipe_folder)) == 3
    assert "File too large" in capsys.readouterr().err
    assert (recipe_folder / "recipe.toml").read_bytes() == recipe
    assert not [file for file in recipe_folder.rglob("*") if file.name.endswith(".tmp")]
    assert call("train", str(recipe_folder), "--resume") == 0
    assert (recipe_folder / "weights.safetensors").is_file()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_train_deletes_its_own_checkpoint_and_nothing_else(recipe_folder: Path) -> None:
    kept = recipe_folder / "checkpoints" / "notes.txt"
    kept.parent.mkdir()
    kept.write_text("of the user")
    other = kept.with_name("0123456789abcdef.safetensors")
    other.write_bytes(b"of another recipe")
    assert call("train", str(recipe_folder)) == 0
    assert sorted(file.name for file in kept.parent.iterdir()) == [other.name, kept.name]
    kept.unlink()
    other.unlink()
    assert call("train", str(recipe_folder)) == 0
    assert not kept.parent.exists()


@pytest.mark.parametrize("vouched", [False, True])
def test_train_leaves_weights_that_are_not_of_its_recipe(
    recipe_folder: Path, vouched: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if vouched:
        with (recipe_folder / "recipe.toml").open("a") as recipe:
            recipe.write(f'\n[weights]\nsha256 = "{"0" * 64}"\n')
    (recipe_folder / "weights.safetensors").write_bytes(b"of the user")
    before = tree(recipe_folder)
    assert call("train", str(recipe_folder)) == 2
    assert "move them away" in one_line(capsys)
    assert tree(recipe_folder) == before


@pytest.mark.parametrize("taken", ["weights.safetensors", "checkpoints"])
def test_train_says_at_once_what_it_cannot_write(
    recipe_folder: Path, taken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if taken == "checkpoints":
        (recipe_folder / taken).write_bytes(b"a file where a folder belongs")
    else:
        (recipe_folder / taken).mkdir()
    assert call("train", str(recipe_folder)) == 2
    one_line(capsys)


def test_radii_are_not_written_over_a_file_of_another_origin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("index,price\n1,2\n")
    assert call("certify", "digits/resnet", "--csv", str(file)) == 2
    assert "one that this package wrote" in one_line(capsys)
    assert file.read_text() == "index,price\n1,2\n"


@pytest.mark.parametrize("name", ["index.html", "samples.csv", "leaderboard.json", "figures/a.svg"])
def test_a_report_is_not_written_over_files_of_another_origin(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("of the user")
    for arguments in (
        ("evaluate", "digits-quick", "--out"),
        ("report", "nowhere", "--out"),
    ):
        assert call(*arguments, str(tmp_path)) == 2
        assert "a folder of its own for the report" in one_line(capsys)
    assert tree(tmp_path) == {name: b"of the user"}


def test_a_pipe_in_the_place_of_a_store_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "results.sqlite")
    assert call("evaluate", "digits-quick", "--out", str(tmp_path)) == 2
    assert "something that is no file" in one_line(capsys)


def test_claims_are_not_written_over_a_page_of_another_origin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.md").write_text("of the user")
    assert call("claims", "--out", str(tmp_path)) == 2
    assert "a folder of its own for the report" in one_line(capsys)


@pytest.mark.parametrize("name", ["CARD.md", "measured.json", "proved.json"])
def test_a_card_is_not_written_over_files_of_another_origin(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "entry"
    shutil.copytree(find_entry("digits/resnet"), folder)
    (folder / name).write_text("of the user")
    before = tree(folder)
    assert call("card", str(folder), "--remeasure") == 2
    assert "one that this package wrote" in one_line(capsys)
    assert tree(folder) == before


def test_a_link_to_write_through_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_file(tmp_path / "link", b"radii")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"radii"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount file systems of a given size in memory."""
    mounted: list[Path] = []

    def mount(kilobytes: int) -> Path:
        place = tmp_path / f"disk-{kilobytes}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system of its own can be mounted: {done.stderr.strip()}")
        mounted.append(place)
        return place

    try:
        yield mount
    finally:
        for place in mounted:
            subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("kilobytes", [8, 24, 40])
def test_train_on_a_small_disk_fails_as_the_machine_and_loses_nothing(
    small_disk: Callable[[int], Path],
    recipe_folder: Path,
    kilobytes: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = small_disk(kilobytes) / "tiny"
    shutil.copytree(recipe_folder, folder)
    recipe = (folder / "recipe.toml").read_bytes()
    assert call("train", str(folder)) == 3
    assert "No space left on device" in one_line(capsys)
    assert (folder / "recipe.toml").read_bytes() == recipe
    assert not (folder / "weights.safetensors").exists()


def test_certify_on_a_small_disk_keeps_the_radii_that_are_there(
    small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk(8)
    arguments = ("certify", "digits/lyanet", "--samples", "20", "--workers", "1", "--csv")
    assert call(*arguments, str(disk / "radii.csv")) == 0
    before = (disk / "radii.csv").read_bytes()
    with (disk / "rest").open("wb", buffering=0) as rest, contextlib.suppress(OSError):
        while rest.write(bytes(4096)):
            pass
    capsys.readouterr()
    assert call(*arguments, str(disk / "radii.csv")) == 3
    assert "No space left on device" in one_line(capsys)
    assert (disk / "radii.csv").read_bytes() == before


def rows(count: int) -> tuple[Result, Job]:
    """A unit of so many samples, each with a reason of 500 letters."""
    job = Job("attack", 1, 0, 1, count, "fgsm", Norm.LINF, 0.1)
    found = [Row(i, Status.ERROR, None, None, None, 0, 500 * "x") for i in range(count)]
    return Result(f"unit {count}", "attack", found, 0.0), job


def test_a_store_on_a_small_disk_is_made_whole_or_not_at_all(
    small_disk: Callable[[int], Path],
) -> None:
    disk = small_disk(16)
    with pytest.raises(OperationalError, match="full"):
        Store(disk / "results.sqlite")
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("kilobytes", [192, 320])
def test_a_store_that_fills_its_disk_keeps_what_it_has_and_goes_on_elsewhere(
    small_disk: Callable[[int], Path], kilobytes: int, tmp_path: Path
) -> None:
    disk, kept = small_disk(kilobytes), []
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(OperationalError, match="full"))
        store = stack.enter_context(Store(disk / "results.sqlite"))
        for count in range(20, 1000, 20):
            result, job = rows(count)
            store.add(result, job, "a model")
            kept.append(result.key)
    assert kept
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(disk, elsewhere)  # with what SQLite had no room to move into the file
    for folder in (disk, elsewhere):
        with Store(folder / "results.sqlite", must_exist=True) as store:
            assert store.done() == set(kept)
            assert len(store.rows(job, kept)) == sum(20 * (i + 1) for i in range(len(kept)))
    with Store(elsewhere / "results.sqlite") as store:
        store.add(*rows(990), "a model")
        assert len(store.rows(job, ["unit 990"])) == 990


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [160, 320, 480])
def test_a_report_on_a_small_disk_fails_as_the_machine(
    small_disk: Callable[[int], Path], kilobytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever file of the report the disk fills up at."""
    report = small_disk(kilobytes) / "report"
    arguments = ("evaluate", "digits-quick", "--models", "digits/resnet", "--samples", "2")
    assert call(*arguments, "--workers", "1", "--out", str(report)) == 3
    assert "Traceback" not in one_line(capsys)
