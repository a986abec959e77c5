"""A packed store gives the same report, goes on where the whole one did, and leaves the rest."""

import lzma
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import robustness.api as api
from robustness.cli import app
from robustness.errors import UsageError
from robustness.evaluation.database import DamagedError
from robustness.evaluation.packing import PACKED_FILE, packed, store_of
from robustness.evaluation.plan import ModelInfo
from robustness.evaluation.store import Store
from robustness.evaluation.suite import Suite
from robustness.recipe import read_recipe
from robustness.results.leaderboard import (
    LEADERBOARD_FILE,
    STORE_FILE,
    Leaderboard,
    read_leaderboard,
)
from robustness.zoo import find_entry, has_weights, load_model, zoo_folder
from tests.evaluation.test_store import sql

SUITE = Suite.model_validate(
    {
        "name": "packed",
        "data": "digits",
        "samples": 8,
        "models": ["digits/resnet"],
        "threats": [{"norm": "Linf", "eps": [0.05]}],
        "attacks": [{"kind": "fgsm"}],
    }
)
LARGER = SUITE.model_copy(update={"samples": 16, "models": ["digits/resnet", "digits/node"]})


@pytest.fixture(scope="module", autouse=True)
def no_pages() -> Iterator[None]:
    """The leaderboard alone is written."""

    def leaderboard_alone(leaderboard: Leaderboard, folder: Path) -> None:
        (folder / LEADERBOARD_FILE).write_text(leaderboard.to_json())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "write_report", leaderboard_alone)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run after a larger one, of which its store holds all, and of a packed one."""
    folder = tmp_path_factory.mktemp("run")
    api.evaluate(LARGER, out=folder, workers=1)
    api.evaluate(SUITE, out=folder, workers=1)
    said = CliRunner().invoke(
        app, ["report", str(folder), "--out", str(folder / "packed"), "--pack"]
    )
    assert said.exit_code == 0, said.output
    return folder


@pytest.fixture
def travelled(run: Path, tmp_path: Path) -> Path:
    """A folder with the packed store alone."""
    shutil.copy(run / "packed" / PACKED_FILE, tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_report_of_a_packed_store_is_that_of_the_whole_one(run: Path, travelled: Path) -> None:
    assert not (run / "packed" / STORE_FILE).exists()
    api.render(travelled, travelled)
    api.render(travelled / PACKED_FILE, travelled / "by name")
    whole = api.render(run, travelled / "whole")
    for folder in (travelled, travelled / "by name"):
        board = read_leaderboard(folder / LEADERBOARD_FILE)
        assert board.comparable() == whole.comparable()
        assert board.timings == whole.timings
    # Packed again it is what it was.
    api.render(travelled, travelled / "again", pack=True)
    content = (travelled / "again" / PACKED_FILE).read_bytes()
    assert content == (travelled / PACKED_FILE).read_bytes()


def test_it_holds_the_units_of_the_report_and_no_others(run: Path, travelled: Path) -> None:
    store = travelled / STORE_FILE
    store.write_bytes(lzma.decompress((travelled / PACKED_FILE).read_bytes()))
    with Store(store) as part, Store(run / STORE_FILE, must_exist=True) as whole:
        assert part.done() < whole.done()
        models = [model for _, model, _, _ in part.costs()]
        assert set(models) == {"digits/resnet"}
        assert len(part.starts()) == 2


@pytest.mark.slow
def test_evaluate_goes_on_from_a_packed_store(
    travelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[str] = []
    add = Store.add

    def noted(store: Store, result, job, model: str) -> None:
        added.append(model)
        add(store, result, job, model)

    monkeypatch.setattr(Store, "add", noted)
    api.evaluate(SUITE, out=travelled, workers=1)
    assert not added
    with_another = SUITE.model_copy(update={"models": ["digits/resnet", "digits/node"]})
    board = api.evaluate(with_another, out=travelled, workers=1)
    assert board is not None
    assert [entry.name for entry in board.models] == ["digits/resnet", "digits/node"]
    assert set(added) == {"digits/node"}


def test_a_start_that_was_interrupted_is_not_taken_for_the_last_run(
    run: Path, tmp_path: Path
) -> None:
    shutil.copy(run / STORE_FILE, tmp_path)
    with Store(tmp_path / STORE_FILE) as store:
        plan = store.last_run().plan
        time.sleep(0.01)
        store.begin_run(plan, {"stopped": "early"})
        content = packed(store)
    (tmp_path / "part.sqlite").write_bytes(lzma.decompress(content))
    with Store(tmp_path / "part.sqlite", must_exist=True) as part:
        assert part.last_run().environment != {"stopped": "early"}
        assert len(part.starts()) == 3


def test_what_is_not_whole_is_refused_in_one_line(
    run: Path, travelled: Path, tmp_path: Path
) -> None:
    content = (travelled / PACKED_FILE).read_bytes()
    for damaged in (b"", b"no archive", content[: len(content) // 2]):
        (travelled / PACKED_FILE).write_bytes(damaged)
        for use in (
            lambda: api.render(travelled, travelled / "out"),
            lambda: api.evaluate(SUITE, out=travelled, workers=1),
        ):
            with pytest.raises(UsageError, match="expected") as caught:
                use()
            assert "\n" not in str(caught.value)
    assert not (travelled / STORE_FILE).exists()
    assert not (travelled / "out").exists()
    # A store of which a unit is gone is not packed.
    shutil.copy(run / STORE_FILE, tmp_path)
    sql("DELETE FROM shards WHERE kind = 'attack'")(tmp_path / STORE_FILE)
    with pytest.raises(DamagedError, match="missing"):
        api.render(tmp_path, tmp_path / "out", pack=True)


def test_there_is_nothing_to_pack_without_a_store(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / LEADERBOARD_FILE, tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        api.render(tmp_path, tmp_path, pack=True)


STORES = sorted((zoo_folder().parent / "reports").rglob(PACKED_FILE))


@pytest.mark.slow
@pytest.mark.skipif(not STORES, reason="no committed report has its store with it")
@pytest.mark.parametrize("file", STORES, ids=lambda file: file.parent.name)
def test_a_committed_report_is_rendered_again_from_its_store(file: Path, tmp_path: Path) -> None:
    assert file.stat().st_size < 4 * 2**20
    again = api.render(file, tmp_path)
    assert again.comparable() == read_leaderboard(file.parent / LEADERBOARD_FILE).comparable()


@pytest.mark.slow
@pytest.mark.parametrize("file", STORES, ids=lambda file: file.parent.name)
def test_an_entry_of_the_zoo_is_known_to_the_store_of_its_report(file: Path) -> None:
    # An attribute more in a class of networks, and everything would be computed anew.
    with store_of(file) as whole, Store(whole, must_exist=True) as store:
        run = store.last_run()
    if run.environment["torch"] != torch.__version__:
        pytest.skip(f"the results are of torch {run.environment['torch']}")
    for model in run.plan.models:
        recipe = read_recipe(find_entry(model.name))
        if has_weights(recipe):
            now = ModelInfo.of(load_model(model.name), recipe.data.name, recipe.data.shape)
            assert now.identity == model.identity, model.name
