"""`robustness init` writes what runs, and writes over nothing."""

import runpy
from pathlib import Path

import pytest

from robustness import cli
from robustness.evaluation.suite import load_suite
from robustness.recipe import read_recipe
from robustness.starting import Template


def run(line: str) -> int:
    return cli.run(lambda: cli.app(line.split(), standalone_mode=False))


@pytest.mark.parametrize("template", list(Template))
def test_what_is_written_is_whole_and_never_over_a_file(
    template: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(f"init folder --template {template}") == 0
    folder = tmp_path / "folder"
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    out = capsys.readouterr().out
    assert all(str(file.relative_to(tmp_path)) in out for file in files)
    assert "next: cd folder && " in out
    suite = load_suite(str(folder / "suite.toml"))
    assert suite.name == "own"
    if template == Template.ZOO:
        assert read_recipe(folder / "own").weights is None
        kept = folder / "own" / "recipe.toml"
    else:
        kept = folder / "own_model.py"
        module = runpy.run_path(str(kept))
        module["train"](1)
        logits = module["model"]().eval()(module["torch"].rand(2, 1, 8, 8))
        assert logits.shape == (2, 10)
    kept.write_text("mine", encoding="utf-8")
    (folder / "suite.toml").unlink()
    assert run(f"init folder --template {template}") == 2
    assert "expected no file, got one" in capsys.readouterr().err
    assert kept.read_text(encoding="utf-8") == "mine"
    assert not (folder / "suite.toml").exists()


def test_an_unknown_template_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"init {tmp_path} --template resnet") == 2
    assert "one of classifier, torchdiffeq, zoo" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
