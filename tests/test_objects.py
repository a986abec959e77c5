"""Modules and tensors in the place of names; results that show themselves."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustness import api
from robustness.certificates import Kind
from robustness.data import DATASETS, load_images
from robustness.errors import UsageError
from robustness.evaluation.suite import Suite
from robustness.results.leaderboard import Leaderboard
from robustness.zoo import is_factory, load_model


class Net(nn.Module):
    """Ten logits of the pixels; of three classes in the images, it has ten all the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


def given() -> tuple[Tensor, Tensor]:
    digits = load_images("digits")
    few = digits.labels < 3
    return digits.images[few][:12], digits.labels[few][:12]


def test_attack_takes_a_module_and_tensors_and_leaves_the_module_as_it_was() -> None:
    net = Net().train()
    images, labels = given()
    row = api.attack(net, "Linf", 0.02, "fgsm", data=(images, labels))
    assert row.subset == 12
    assert row.errors == 0
    assert row.robust.count <= int((net(images).argmax(1) == labels).sum())
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert "given:images" not in DATASETS
    assert not is_factory("Net")
    # The same by name.
    pairs = list(zip(images, labels, strict=True))
    assert api.attack(net, "Linf", 0.02, "fgsm", data=pairs) == row


@pytest.mark.slow
def test_certify_and_inspect_take_them_too() -> None:
    net = nn.Sequential(nn.Flatten(), Net().linear)
    rows = api.certify(net, "L2", "lipschitz-margin", data=given(), samples=4, audit=1)
    assert [row.kind for row in rows] == [Kind.CERTIFIED] * 4
    assert len(rows.to_dataframe("polars")) == 4
    assert rows.plot().get_ylabel() == "certified accuracy"
    x, y = rows.plot().lines[0].get_data()
    right = [row.radius for row in rows if row.label == row.prediction and row.radius > 0]
    assert y[0] == len(right) / 4
    assert max(x) == max(right, default=0.0)
    assert api.inspect(Net(), data=given()).operations["addmm"] == 1


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Leaderboard:
    suite = Suite.model_validate(
        {
            "name": "objects",
            "data": "digits",
            "models": ["digits/resnet"],
            "threats": [{"norm": "Linf", "eps": [0.02, 0.1]}],
            "attacks": [{"kind": "fgsm"}],
        }
    )

    def quiet(leaderboard: Leaderboard, folder: Path) -> None:
        return

    monkeypatch.setattr(api, "write_report", quiet)
    models = [Net(), Net(), "digits/resnet"]
    return api.evaluate(suite, models=models, data=given(), out=tmp_path / "out")


def test_evaluate_takes_modules_beside_names_and_the_board_shows_itself(
    board: Leaderboard,
) -> None:
    assert [entry.name for entry in board.models] == ["Net", "Net-2", "digits/resnet"]
    assert board.models[0].brackets == board.models[1].brackets  # they are the same function
    assert repr(board) == "<Leaderboard objects on 12 samples: Net, Net-2, digits/resnet>"
    frame = board.to_dataframe("polars")
    assert frame.shape == (6, 9)
    assert frame["eps"].to_list() == [0.02, 0.1] * 3
    assert frame["attacked"][4] == board.models[2].brackets[0].attacked.value
    html = board._repr_html_()
    assert html.count("<tr>") == 7
    assert "<td>digits/resnet</td>" in html
    drawn = board.plot("Linf")
    assert [line.get_label() for line in drawn.lines] == ["Net", "Net-2", "digits/resnet"]
    assert list(drawn.lines[2].get_xdata()) == [0.0, 0.02, 0.1]
    row = board.models[0].attacks[0]
    assert repr(row).startswith("<fgsm at ")
    assert row.to_dataframe("polars")["images"].to_list() == [12]
    assert row.plot().get_yticklabels()[0].get_text().startswith("fgsm, ")
    # A copy read from its file is the same thing.
    assert repr(Leaderboard.model_validate_json(board.to_json())) == repr(board)


def test_names_of_others_are_escaped_in_a_notebook(board: Leaderboard) -> None:
    entry = board.models[0].model_copy(update={"name": "<b>"})
    shown = board.model_copy(update={"models": [entry]})._repr_html_()
    assert "<b>" not in shown


def test_what_is_no_data_is_refused() -> None:
    images, labels = given()
    for data, said in (
        (3, "expected data as a name"),
        ((images, labels[:3]), r"labels of shape \(12,\)"),
        ((images[0], labels), "images of shape"),
        ((images * 255, labels), r"pixels in \[0, 1\]"),
        ((images, labels.float()), "labels as class indices"),
    ):
        with pytest.raises(UsageError, match=said):
            api.attack(Net(), "Linf", 0.1, "fgsm", data=data)
    with pytest.raises(UsageError, match="expected an attack, one of"):
        api.attack("digits/resnet", "Linf", 0.1, "none", data=(images, labels))


def test_a_frame_of_what_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = api.CertifiedSamples([api.CertifiedSample(0, 1, 1, 0.1, Kind.CERTIFIED, "p", "")])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match=r"pip install 'lyanet-robustness\[frames\]'"):
        rows.to_dataframe("pandas")
    with pytest.raises(UsageError, match="got 'excel'"):
        rows.to_dataframe("excel")
    assert type(rows.to_dataframe()).__module__.startswith("polars")


def test_doctor_takes_a_module() -> None:
    module = load_model("digits/resnet").module
    diagnosis = api.doctor(module, data="digits", samples=16)
    assert diagnosis.healthy
    name = type(module).__name__
    assert repr(diagnosis) == f"<Diagnosis of {name} on 16 images of digits: nothing>"
