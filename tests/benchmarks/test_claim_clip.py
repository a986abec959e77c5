"""What the clip of the paper's protocol leaves, by a model whose answers follow by hand."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustness.claims.models import Budget
from robustness.data import ImageSet
from robustness.errors import UsageError
from robustness.nets.encoders import Normalise

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import claim_clip


class Bright(nn.Module):
    """Class 1 where the normalised pixel is above a height, else class 0."""

    def __init__(self, height: float) -> None:
        super().__init__()
        self.normalise, self.height = Normalise([0.2], [0.4]), height

    def forward(self, images: Tensor) -> Tensor:
        pixel = self.normalise(images).flatten(1)
        return torch.cat([torch.full_like(pixel, self.height), pixel], dim=1)


IMAGES = ImageSet(
    "mnist", "test", torch.tensor([0.0, 0.3, 0.9]).view(3, 1, 1, 1), torch.tensor([0, 0, 1]), 2
)


@pytest.mark.parametrize(
    ("height", "clipped", "raised"),
    [
        (0.5, 3, 3),  # 0, 0.25 and 1 of [0, 1], or 1.75
        (1.2, 2, 3),  # 0.9 is cut to 0.6, which normalised is 1
        (-0.1, 1, 1),  # black is raised to 0.2, which normalised is 0
    ],
)
def test_pixels_are_squeezed_between_the_mean_and_one_deviation_above(
    height: float, clipped: int, raised: int
) -> None:
    assert claim_clip.right(Bright(height), IMAGES, cut=True) == clipped
    assert claim_clip.right(Bright(height), IMAGES, cut=False) == raised


def test_a_row_is_printed_for_every_model_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def group(_: object, names: tuple[str, ...], *__: object, **___: object) -> object:
        return {name: (Bright(0.5), Budget(epochs=1, best_epoch=1, seconds=1.0)) for name in names}

    told = type("Told", (), {"robust": {}})()
    monkeypatch.setattr(claim_clip, "trained_group", group)
    monkeypatch.setattr(claim_clip, "load_images", lambda *_: IMAGES)
    monkeypatch.setattr(claim_clip, "read_seed", lambda *_: told)
    monkeypatch.setattr(sys, "argv", ["clip", "mnist", "--out", str(tmp_path)])
    claim_clip.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if "| 3 | 3 | - |" in line]
    assert len(rows) == 4 * 5

    def none(*_: object) -> object:
        raise UsageError("expected results of one seed, got none; measure first")

    monkeypatch.setattr(claim_clip, "read_seed", none)
    with pytest.raises(SystemExit) as ended:
        claim_clip.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("got none; measure first\n")
