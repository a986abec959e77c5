"""Files are written whole or not at all, and a full disk is the machine's failure."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from robustness import cli
from robustness.errors import OperationalError, UsageError
from robustness.files import write_file


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """As on a disk with `size` bytes left: no file of this process grows beyond."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


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


def test_certify_on_a_full_disk_ends_with_one_line_and_leaves_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("certify", "digits/resnet", "--samples", "20", "--workers", "1", "--csv")
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
