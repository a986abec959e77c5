"""The attack that is written apart: what it takes for standing, and that it breaks what can be."""

import sys
from pathlib import Path

import pytest
import torch

from robustness.data import load_images
from robustness.threat import Norm
from robustness.zoo import load_model

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import apart  # noqa: E402

SAMPLES = """model,index,label,prediction,norm,adversarial_distance,certified_radius
a,3,1,1,Linf,0.2,0.1
a,2,1,1,Linf,,0.05
a,1,1,1,Linf,0.1,
a,5,1,2,Linf,,
a,4,1,1,L2,,9
b,6,1,1,Linf,,
"""


def test_what_stands_is_right_and_was_broken_nowhere_within_the_radius(tmp_path: Path) -> None:
    (tmp_path / "samples.csv").write_text(SAMPLES)
    assert apart.standing(tmp_path, "a", Norm.LINF, 0.1) == [2, 3]
    assert apart.standing(tmp_path, "a", Norm.LINF, 0.3) == [2]
    assert apart.standing(tmp_path, "b", Norm.LINF, 0.1) == [6]
    # What is certified there is no longer open.
    assert apart.standing(tmp_path, "a", Norm.LINF, 0.1, certified=False) == [2]


def test_every_model_of_a_report_is_attacked_on_what_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    named = SAMPLES.replace("\na,", "\ndigits/node,").replace("\nb,", "\ndigits/resnet,")
    (tmp_path / "samples.csv").write_text(named)
    attacked: list[int] = []

    def first_is_broken(model, images, labels, *_) -> list[int]:
        attacked.append(len(images))
        return [0]

    monkeypatch.setattr(apart, "broken", first_is_broken)
    command = ["apart.py", str(tmp_path), "--norm", "Linf", "--eps", "0.1", "--batch", "1"]
    for more, sizes, node in (([], [1, 1, 1], "2 of 2"), (["--open"], [1, 1], "1 of 1")):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        apart.main()
        assert attacked == sizes
        said = capsys.readouterr().out.splitlines()
        assert said[0].startswith(f"digits/node, Linf 0.1: {node} that stand are broken")
        assert said[1].startswith("digits/resnet, Linf 0.1: 1 of 1 that stand are broken")
        attacked.clear()


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [(Norm.LINF, 0.2), (Norm.L2, 1.5)])
def test_all_is_broken_in_a_wide_ball_and_nothing_in_a_narrow_one(
    norm: Norm, eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apart, "ROUNDS", 4)
    model, data = load_model("digits/node").module, load_images("digits", "test")
    with torch.no_grad():
        right = (model(data.images[:8]).argmax(dim=1) == data.labels[:8]).nonzero().squeeze(1)[:3]
    images, labels = data.images[right], data.labels[right]
    assert sorted(apart.broken(model, images, labels, norm, eps, 4, 0)) == [0, 1, 2]
    assert apart.broken(model, images, labels, norm, eps / 1000, 4, 0) == []


def test_points_are_moved_into_ball_and_box() -> None:
    images = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    far = images + 3 * torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    for norm, order in ((Norm.LINF, torch.inf), (Norm.L2, 2)):
        moved = apart.into_ball(far, images, norm, 0.1)
        sizes = torch.linalg.vector_norm((moved - images).flatten(1), order, dim=1)
        assert float(sizes.max()) <= 0.1 * (1 + 1e-5)
        assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
