"""The command line: one clear line and exit code 2 for bad input, nothing lost."""

import csv
import shutil
from pathlib import Path

import pytest
import typer.main

from robustness import api, cli
from robustness.claims import run as claims
from robustness.training import loop
from robustness.zoo import find_entry

LONG, BEYOND = "x" * 5000, str(2**64)


def call(*arguments: str) -> int:
    return cli.run(lambda: cli.app(list(arguments), standalone_mode=False))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("error: ")
    assert len(captured.err) <= 301
    return captured.err


@pytest.fixture
def nothing_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Fails where a model or an image is read, or a file written to the working folder."""

    def forbidden(*arguments: object) -> None:
        raise AssertionError(f"read {arguments}")

    for module, name in (
        (api, "load_model"),
        (api, "load_images"),
        (loop, "load_images"),
        (claims, "load_images"),
    ):
        monkeypatch.setattr(module, name, forbidden)
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    """A copy of a zoo entry to spoil."""
    folder = tmp_path / "entry"
    shutil.copytree(find_entry("digits/resnet"), folder)
    return folder


def test_an_unknown_model_is_named_and_a_near_one_suggested(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = refused(
        capsys,
        "evaluate",
        "digits-quick",
        "--models",
        "digits/resnte",
        "--out",
        str(tmp_path / "o"),
    )
    assert "digits/resnet" in line
    assert not (tmp_path / "o").exists()


def test_without_a_command_the_help_is_printed_and_the_exit_code_is_of_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(lambda: cli.app([], standalone_mode=False)) == 2
    said = capsys.readouterr()
    assert "Exit codes" in said.out
    assert said.err.startswith("error: expected a command, got none; see")


@pytest.mark.parametrize("eps", ["0", "-1", "abc", "nan", "1/0"])
def test_a_radius_that_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], eps: str
) -> None:
    line = refused(capsys, "attack", "digits/resnet", f"--eps={eps}", "--samples", "4")
    assert "expected a radius above 0" in line


def test_weights_with_another_hash_are_refused(
    capsys: pytest.CaptureFixture[str], entry: Path
) -> None:
    weights = entry / "weights.safetensors"
    spoilt = bytearray(weights.read_bytes())
    spoilt[-1] ^= 1
    weights.write_bytes(bytes(spoilt))
    assert "expected SHA-256" in refused(capsys, "certify", str(entry))


def test_truncated_weights_are_refused(capsys: pytest.CaptureFixture[str], entry: Path) -> None:
    weights = entry / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "truncated" in refused(capsys, "certify", str(entry))


def test_a_misspelt_suite_key_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "suite.toml"
    file.write_text('nmae = "x"\n')
    assert "nmae" in refused(capsys, "evaluate", str(file))


def test_images_outside_the_box_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import numpy as np

    file = tmp_path / "mine.npz"
    np.savez(file, images=np.full((4, 1, 8, 8), 1.5, np.float32), labels=np.zeros(4, np.int64))
    line = refused(
        capsys, "attack", "digits/resnet", "--eps", "0.1", "--data", str(file), "--samples", "4"
    )
    assert "[0, 1]" in line


def test_a_folder_that_cannot_be_written_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    line = refused(capsys, "evaluate", "digits-quick", "--out", str(blocked / "reports"))
    assert "can be written" in line
    assert blocked.read_text() == "not a folder"


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "digits", "--wrokers", "2"),
        ("attack", "digits/resnet"),
        ("attack", "digits/resnet", "--eps", "0.1", "--attack", "luck", "--samples", "4"),
        ("attack", "digits/resnet", "--eps", "0.1", "--norm", "L9", "--samples", "4"),
        ("attack", "digits/resnet", "--eps", "0.1", "--norm", "L2", "--attack", "fgsm"),
        ("certify", "no.such:factory"),
        ("certify", "digits/lyanet-certified", "--samples", "4", "--audit", "0"),
        ("certify", "digits/lyanet-certified", "--samples", "4", "--workers", "0"),
        ("report", "/nonexistent", "--out", "/tmp/never"),
        ("check", "/nonexistent", "--baseline", "/nonexistent"),
        ("models", "--dataset", "imagenet"),
        ("train", "digits/nothing"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    refused(capsys, *arguments)


@pytest.mark.slow
def test_certify_writes_a_radius_for_every_image(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "radii.csv"
    arguments = ["--samples", "20", "--csv", str(file), "--workers", "1", "--audit", "1"]
    assert call("certify", "digits/lyanet-certified", *arguments) == 0
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 20
    assert list(rows[0]) == ["index", "label", "prediction", "radius", "kind", "certificate"]
    for row in rows:
        assert row["kind"] == "certified"
        assert (float(row["radius"]) > 0) <= (row["label"] == row["prediction"])
    assert "certified accuracy" in capsys.readouterr().out


def test_certify_runs_the_named_certificate_and_names_its_kind(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("certify", "digits/resnet", "--samples", "1", "--certificate")
    assert call(*arguments, "smoothing") == 0
    out = capsys.readouterr().out
    assert "probabilistic accuracy" in out
    assert "smoothed classifier" in out
    assert "certified accuracy" not in out
    assert "smoothing" in refused(capsys, *arguments, "smoothign")


def test_attack_prints_its_version_and_interval(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        call("attack", "digits/resnet", "--eps", "8/255", "--samples", "8", "--workers", "1") == 0
    )
    out = capsys.readouterr().out
    assert "torchattacks" in out
    assert "95%" in out


def test_models_lists_the_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("models", "--dataset", "digits") == 0
    out = capsys.readouterr().out
    for name in ("resnet", "node", "lyanet", "lyanet-certified"):
        assert f"digits/{name}" in out


@pytest.mark.usefixtures("nothing_read")
@pytest.mark.parametrize(
    "arguments",
    [
        ("certify", LONG),
        ("certify", ""),
        ("certify", "digits/\x1b[31mresnet"),
        ("certify", "digits/resnet", "--seed", BEYOND),
        ("certify", "digits/resnet", "--seed", "-1"),
        ("certify", "digits/resnet", "--norm", "L7"),
        ("certify", "digits/resnet", "--certificate", ""),
        ("certify", "digits/resnet", "--certificate", "luck"),
        ("certify", "digits/resnet", "--workers", "0"),
        ("certify", "digits/resnet", "--workers", "1000000"),
        ("certify", "digits/resnet", "--audit", "0"),
        ("certify", "digits/resnet", "--csv", "/"),
        ("certify", "digits/resnet", "--csv", "/nonexistent/radii.csv"),
        ("certify", "digits/resnet", "--csv="),
        ("certify", "digits/resnet", "--data", "minst"),
        ("certify", "digits/resnet", "--data", "missing.npz"),
        ("certify", "mnist/resnet", "--data-dir", "/nonexistent"),
        ("attack", "digits/resnet", "--eps", "9" * 5000),
        ("attack", "digits/resnet", "--eps", "0.1", "--seed", BEYOND),
        ("attack", "digits/resnet", "--eps", "0.1", "--samples", "9" * 400),
        ("attack", "digits/resnet", "--eps", "0.1", "--attack", "luck"),
        ("attack", "digits/resnet", "--eps", "0.1", "--workers", BEYOND),
        ("evaluate", LONG),
        ("evaluate", "digits-quick", "--seed", BEYOND),
        ("evaluate", "digits-quick", "--out", ""),
        ("evaluate", "digits-quick", "--out="),
        ("evaluate", "digits-quick", "--out", LONG),
        ("evaluate", "digits-quick", "--out", "/proc/report"),
        ("evaluate", "digits-quick", "--out", "/dev/null/report"),
        ("evaluate", "digits-quick", "--models", ""),
        ("evaluate", "digits-quick", "--models", "digits/resnet,"),
        ("evaluate", "digits-quick", "--models", LONG),
        ("evaluate", "digits-quick", "--models", "mnist/resnet"),
        ("evaluate", "digits-quick", "--batch-size", BEYOND),
        ("evaluate", "digits-quick", "--samples", "0"),
        ("evaluate", "digits-quick", "--workers", "0"),
        ("evaluate", "digits-quick", "--data", "minst"),
        ("report", "/nonexistent", "--out", "/dev/null/report"),
        ("train", ""),
        ("train", "mnist/resnet", "--data-dir", "/nonexistent"),
        ("card", "digits/resnet", "--prove", "--audit", "0"),
        ("card", "mnist/resnet", "--data-dir", "/nonexistent"),
        ("models", "--dataset", ""),
        ("inspect", "mnist/resnet", "--data", "minst"),
        ("inspect", "mnist/resnet", "--data", "mnist", "--data-dir", "/nonexistent"),
        ("claims", "--out", "/dev/null"),
        ("claims", "--data-dir", "/nonexistent"),
        ("check", "/", "--baseline", "/", "--tolerance", "nan"),
    ],
)
def test_bad_input_is_refused_before_anything_is_read_or_written(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    refused(capsys, *arguments)


@pytest.mark.slow
def test_a_model_of_another_data_set_is_measured_only_if_that_is_said(
    capsys: pytest.CaptureFixture[str],
    entry: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = entry / "recipe.toml"
    foreign = recipe.read_text(encoding="utf-8").replace('name = "digits"', 'name = "mnist"')
    recipe.write_text(foreign, encoding="utf-8")
    line = refused(capsys, "evaluate", "digits-quick", "--models", "entry", "--out", "report")
    assert "expected a model of digits, got entry, which was trained on mnist" in line
    suite = tmp_path / "suite.toml"
    suite.write_text(
        'name = "tiny"\ndata = "digits"\nsamples = 1\nmodels = ["entry"]\n'
        'threats = [{ norm = "L2", eps = [0.1] }]\n',
        encoding="utf-8",
    )
    meant = ("--data", "digits", "--workers", "1")
    noted = "trained on mnist and measured on digits"
    assert call("evaluate", "suite.toml", "--out", "report", *meant) == 0
    assert noted in capsys.readouterr().out
    report = (tmp_path / "report" / "leaderboard.md").read_text(encoding="utf-8")
    assert "trained on mnist, measured on digits" in report
    assert call("certify", "entry", "--samples", "1", *meant) == 0
    assert noted in capsys.readouterr().out


def test_the_settings_of_an_attack_are_checked_and_all_there_are_are_named(
    capsys: pytest.CaptureFixture[str], nothing_read: None
) -> None:
    asked = ("attack", "digits/resnet", "--eps", "0.1", "--attack")
    line = refused(capsys, *asked, "pgd", "--set", "stpes=3")
    assert "attack pgd, one of steps, restarts, relative_step, got 'stpes'" in line
    assert "steps" in refused(capsys, *asked, "pgd", "--set", "steps=0")
    assert "NAME=VALUE" in refused(capsys, *asked, "pgd", "--set", "steps")
    assert "of which it has none" in refused(capsys, *asked, "fgsm", "--set", "steps=3")
    assert "effort" in refused(capsys, *asked, "pgd", "--effort", "thorough")
    line = refused(capsys, *asked, "worst-case", "--effort", "utmost")
    assert "'quick', 'standard' or 'thorough'" in line
    assert "did you mean pgd?" in refused(capsys, *asked, "pgdd")


@pytest.mark.parametrize("words", [("--plugin", "gone"), ("--plugin=gone",)])
@pytest.mark.parametrize("first", [True, False])
def test_a_plugin_that_cannot_be_imported_ends_every_command(
    capsys: pytest.CaptureFixture[str], nothing_read: None, words: tuple[str, ...], first: bool
) -> None:
    command = ("compare", "a", "b")
    line = refused(capsys, *(words + command if first else command + words))
    assert "expected a plugin" in line
    assert "'gone'" in line


def test_every_command_knows_plugin() -> None:
    group = typer.main.get_command(cli.app)
    assert len(group.commands) > 8
    for command in (group, *group.commands.values()):
        assert [p.name for p in command.params].count("plugin") == 1


def test_an_executor_is_one_that_is_registered(
    capsys: pytest.CaptureFixture[str], nothing_read: None
) -> None:
    line = refused(capsys, "attack", "digits/resnet", "--eps", "0.1", "--executor", "hear")
    assert "expected an executor, one of processes, dask, here" in line
