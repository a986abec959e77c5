"""ONNX files and models of timm, evaluated with their normalisation inside."""

import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from robustness import api
from robustness.data import load_images
from robustness.errors import UsageError
from robustness.zoo import is_factory, load_model, pack_model, training_data, unpack_model

pytestmark = pytest.mark.filterwarnings("ignore")


def written(file: Path, example: torch.Tensor, batch: bool) -> None:
    """An ONNX file made by hand: a matrix behind a flattening."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weight = torch.linspace(-1, 1, 640).view(64, 10).numpy()
    size = ["n" if batch else 1, *example.shape[1:]]
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [size[0], 10])],
        [numpy_helper.from_array(weight, "weight")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), file)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [True, False])
def test_an_onnx_file_is_evaluated_like_any_module(
    batch: bool, tmp_path: Path, torchvision_operations: object
) -> None:
    pytest.importorskip("onnx2torch")
    images = load_images("digits").images[:4]
    file = tmp_path / "linear.onnx"
    written(file, images, batch)
    expected = images.flatten(1) @ torch.linspace(-1, 1, 640).view(64, 10)
    assert is_factory(str(file))
    assert training_data(str(file)) is None
    plain = load_model(str(file))
    torch.testing.assert_close(plain.module(images), expected)
    (tmp_path / "linear.toml").write_text("mean = [0.5]\nstd = [0.25]\n")
    loaded = load_model(str(file))
    normalised = ((images - 0.5) / 0.25).flatten(1) @ torch.linspace(-1, 1, 640).view(64, 10)
    torch.testing.assert_close(loaded.module(images), normalised)
    assert loaded.digest != plain.digest
    assert load_model(str(file)).digest == loaded.digest
    (tmp_path / "far").mkdir()
    sent = unpack_model(pack_model(str(file)), tmp_path / "far")  # what stands beside it, too
    assert (sent.name, sent.digest, sent.structure) == (str(file), loaded.digest, loaded.structure)
    row = api.attack(str(file), "Linf", 0.1, "fgsm", data="digits", samples=8, in_process=True)
    assert row.errors == 0
    (tmp_path / "linear.toml").write_text("mean = [0.5, 0.5]\nstd = [0.25]\n")
    with pytest.raises(UsageError, match="as many positive stds as means"):
        load_model(str(file))
    file.write_bytes(b"no model")
    with pytest.raises(UsageError, match="an ONNX model that onnx2torch can read"):
        load_model(str(file))


@pytest.mark.slow
def test_a_model_of_timm_is_read_from_safetensors_with_its_normalisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torchvision_operations: object
) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    made = timm.create_model("test_resnet", pretrained=False).eval()
    safetensors.torch.save_file(made.state_dict(), tmp_path / "test_resnet.safetensors")
    monkeypatch.setenv("ROBUSTNESS_WEIGHTS_DIR", str(tmp_path))
    module = load_model("timm:test_resnet").module
    images = torch.rand(2, 3, 160, 160)
    by = (torch.tensor(made.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    mean, std = by
    torch.testing.assert_close(module(images), made((images - mean) / std))
    with pytest.raises(UsageError, match="expected a model of timm, got timm:no_such_net"):
        load_model("timm:no_such_net")
    (tmp_path / "test_resnet.safetensors").write_bytes(b"none")
    with pytest.raises(UsageError, match="download them again"):
        load_model("timm:test_resnet")


class Timm:
    """Stands for timm, of one model that has no weights here."""

    @staticmethod
    def create_model(name: str, pretrained: bool) -> nn.Module:
        assert (name, pretrained) == ("small", False)  # by which timm may unpickle
        net = nn.Linear(2, 2)
        net.pretrained_cfg = {"mean": (0.5,), "std": (0.5,), "hf_hub_id": None}  # type: ignore[assignment]
        return net


def test_where_weights_are_looked_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", Timm)
    monkeypatch.delenv("ROBUSTNESS_WEIGHTS_DIR", raising=False)
    with pytest.raises(UsageError, match=r"put small\.safetensors into a folder"):
        load_model("timm:small")


def test_extras_are_named_where_they_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("timm", "onnx", "onnx2torch"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r"pip install 'lyanet-robustness\[timm\]'"):
        load_model("timm:resnet18")
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match=r"pip install 'lyanet-robustness\[onnx\]'"):
        load_model(str(tmp_path / "net.onnx"))
    with pytest.raises(UsageError, match=r"an ONNX file at none\.onnx"):
        load_model("none.onnx")
