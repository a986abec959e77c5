"""A certified entry and its property for other verifiers, run by ONNX's own evaluator."""

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from robustness import api, cli
from robustness.data import load_images
from robustness.errors import UsageError
from robustness.exchange import box_of, vnnlib
from robustness.zoo import load_model

CERTIFIED = "digits/lyanet-certified"


def test_the_box_is_the_ball_within_0_and_1_exactly() -> None:
    image = torch.tensor([[[0.0, 0.3], [0.7, 1.0]]])
    box = box_of(image, 0.1)
    for pixel, (low, high) in zip(image.flatten().tolist(), box, strict=True):
        assert Fraction(low) == max(Fraction(pixel) - Fraction(0.1), 0)
        assert Fraction(high) == min(Fraction(pixel) + Fraction(0.1), 1)


def test_the_property_asks_for_another_class_within_the_box() -> None:
    text = vnnlib(torch.tensor([[[0.25, 1.0]]]), 1, 3, 0.5, ["words"])
    assert text.splitlines()[0] == "; words"
    assert re.findall(r"declare-const (\w+) Real", text) == ["X_0", "X_1", "Y_0", "Y_1", "Y_2"]
    assert "(assert (>= X_0 0))" in text
    assert "(assert (<= X_0 0.75))" in text
    assert "(assert (>= X_1 0.5))" in text
    assert "(assert (<= X_1 1))" in text
    assert "(assert (or (and (>= Y_0 Y_1)) (and (>= Y_2 Y_1))))" in text
    assert text.count("(") == text.count(")")


def satisfied(text: str, pixels: np.ndarray, logits: np.ndarray) -> bool:
    """Whether an image and its logits are a counterexample by a property of this form."""
    values = {f"X_{i}": float(v) for i, v in enumerate(pixels.ravel())}
    values |= {f"Y_{i}": float(v) for i, v in enumerate(logits.ravel())}

    def holds(sign: str, left: str, right: str) -> bool:
        first, second = (values[w] if w in values else float(w) for w in (left, right))
        return first >= second if sign == ">=" else first <= second

    plain = re.findall(r"\(assert \(([<>]=) (\S+) (\S+)\)\)", text)
    (choice,) = re.findall(r"\(assert \(or (.*)\)\)", text)
    cases = re.findall(r"\(([<>]=) (\S+) (\S+?)\)", choice)
    return all(holds(*each) for each in plain) and any(holds(*each) for each in cases)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_exported_program_gives_the_deployed_logits_and_its_property_the_claim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    from onnx.reference import ReferenceEvaluator

    out = tmp_path / "out"
    words = f"export {CERTIFIED} --sample 3 --eps 0.01 --out {out} --seconds 60"
    assert cli.run(lambda: cli.app(words.split(), standalone_mode=False)) == 0
    assert "proved here by " in capsys.readouterr().out
    assert (out / "instances.csv").read_text() == "model.onnx,sample-3.vnnlib,60\n"
    graph = onnx.load(out / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    session, module = ReferenceEvaluator(graph), load_model(CERTIFIED).module
    images = load_images("digits").images
    chosen = torch.cat([images[:8], torch.rand(4, 1, 8, 8)])
    for image in chosen.split(1):
        (logits,) = session.run(None, {"image": image.numpy()})
        np.testing.assert_allclose(logits, module(image).numpy(), rtol=1e-4, atol=1e-4)
    text = (out / "sample-3.vnnlib").read_text()
    assert load_model(CERTIFIED).digest in text
    (logits,) = session.run(None, {"image": images[3:4].numpy()})
    assert not satisfied(text, images[3].numpy(), logits)  # the image itself keeps its class
    assert satisfied(text, images[3].numpy(), np.roll(logits, 1))
    assert not satisfied(text, images[4].numpy(), np.roll(logits, 1))  # outside of the box
    # Again over its own files; never over another's.
    (out / "model.onnx").write_bytes(b"another's")
    assert cli.run(lambda: cli.app(words.split(), standalone_mode=False)) == 2
    assert (out / "model.onnx").read_bytes() == b"another's"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sample": 599}, "a sample from 0 to 598"),
        ({"sample": -1}, "a sample from 0 to 598"),
        ({"eps": "-1"}, "eps"),
        ({"certificate": "none"}, "expected a certificate"),
        ({"seconds": 0}, "expected seconds from 1"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_written(
    given: dict[str, object], said: str, tmp_path: Path
) -> None:
    asked = {"sample": 0, "eps": 0.1} | given
    with pytest.raises(UsageError, match=said):
        api.export("digits/resnet", out=tmp_path / "out", **asked)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_model_whose_path_depends_on_the_image_is_refused(user_code, tmp_path: Path) -> None:
    name = user_code("""
from torch import nn
class Model(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10] * (1 if x.sum() > 3 else 2)
""")
    with pytest.raises(UsageError, match="whose program can be recorded"):
        api.export(f"{name}:Model", 0, 0.1, tmp_path / "out", data="digits")
