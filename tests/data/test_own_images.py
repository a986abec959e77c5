"""A folder of images, a torch data set and Hugging Face's, and what is said of wrong ones."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from robustness import cli
from robustness.data import load_images, require_source
from robustness.errors import UsageError

CODE = """
import numpy as np
import torch
from torch.utils.data import Dataset, TensorDataset

images = torch.linspace(0, 1, 6 * 3 * 8 * 8).view(6, 3, 8, 8)
labels = torch.tensor([0, 1, 2, 0, 1, 2])


class Named(Dataset):
    classes = ("a", "b", "c", "d")

    def __init__(self, part=slice(None)):
        self.part = part

    def __len__(self):
        return len(images[self.part])

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError
        return images[self.part][index], int(labels[self.part][index])


def good():
    return TensorDataset(images, labels)


def of(split):
    return Named(slice(0, 4) if split == "train" else slice(4, 6))


def changed(image=lambda x: x, label=lambda y: y):
    return lambda: [(image(x), label(y)) for x, y in zip(images, labels)]


eight = changed(lambda x: (255 * x).byte())
big = changed(lambda x: 255 * x)
normalised = changed(lambda x: (x - 0.5) / 0.5)
last = changed(lambda x: x.movedim(0, 2))
array = changed(lambda x: x.numpy())
words = changed(lambda x: "image")
batched = changed(lambda x: x[None])
sizes = lambda: [(images[0], 0), (images[1, :, :4], 1)]
one_hot = changed(label=lambda y: torch.eye(3)[y])
below = changed(label=lambda y: int(y) - 1)
alone = lambda: list(images)
none = lambda: []
nan = changed(lambda x: x * float("nan"))


def raises():
    raise RuntimeError("no disk")
"""
FAULTS = {
    "eight": "got torch.uint8; return image.float() / 255, label",
    "big": "values from 0 to 255; return image / 255, label",
    "normalised": "values from -1 to 1; remove transforms.Normalize",
    "last": "channels last; return image.movedim(2, 0), label",
    "array": "got a numpy array; return torch.from_numpy(image).float()",
    "words": "got str; add transform=torchvision.transforms.ToTensor()",
    "batched": "shape (1, 3, 8, 8); return image[0], label",
    "sizes": "(3, 8, 8) and (3, 4, 8); resize them",
    "one_hot": "labels as class indices, got Tensor; return image, int(label)",
    "below": "labels from 0 up, got -1",
    "alone": "got Tensor; return image, label",
    "none": "at least one image",
    "nan": "expected finite pixels",
    "raises": "raised RuntimeError: no disk",
    "missing": "raised AttributeError",
}


def test_a_data_set_of_torch_is_read_by_the_name_of_its_factory(user_code) -> None:
    name = user_code(CODE)
    read = load_images(f"{name}:good")
    assert (len(read), read.shape, read.classes, read.name) == (6, (3, 8, 8), 3, "good")
    assert read.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(read.images[5].flatten()[-1:], torch.ones(1))
    train, test = (load_images(f"{name}:of", split) for split in ("train", "test"))
    assert (len(train), len(test), test.classes) == (4, 2, 4)
    assert len(load_images(f"{name}:Named")) == 6  # a class with a default is a factory, too


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_data_set_gives_wrong_is_answered_by_the_line_that_mends_it(
    fault: str, user_code
) -> None:
    name = user_code(CODE)
    with pytest.raises(UsageError) as raised:
        load_images(f"{name}:{fault}")
    assert FAULTS[fault] in str(raised.value)


def picture(file: Path, mode: str = "L", size: tuple[int, int] = (8, 6), value: int = 51) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255)).save(file)


def test_a_folder_of_images_is_read_class_by_class(tmp_path: Path) -> None:
    picture(tmp_path / "dog" / "1.png", "L")
    picture(tmp_path / "cat" / "b.png", "RGB")
    picture(tmp_path / "cat" / "a.bmp")
    (tmp_path / "cat" / "notes.txt").write_text("none")
    read = load_images(str(tmp_path))
    assert (read.shape, read.classes, read.labels.tolist()) == ((3, 6, 8), 2, [0, 0, 1])
    assert read.images[1, :, 0, 0].tolist() == pytest.approx([0.2, 0.0, 1.0])
    assert read.images[2, :, 0, 0].tolist() == pytest.approx([0.2, 0.2, 0.2])


def test_a_folder_with_splits_is_read_split_by_split(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 1)):
        for index in range(count):
            picture(tmp_path / split / "a" / f"{index}.png")
    assert [len(load_images(str(tmp_path), split)) for split in ("train", "test")] == [3, 1]
    assert load_images(str(tmp_path)).shape == (1, 6, 8)


def test_what_is_wrong_in_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a folder per class with images"):
        load_images(str(tmp_path))
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "a" / "2.png", size=(8, 8))
    with pytest.raises(UsageError, match=r"got \(6, 8\) and \(8, 8\); resize them: .*Resize"):
        load_images(str(tmp_path))
    (tmp_path / "a" / "2.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"2\.png: expected an image"):
        load_images(str(tmp_path))


class Image_(list):  # noqa: N801
    """Stands for `datasets.Image`, told by the name of its class."""


Image_.__name__ = "Image"


class Labels:
    num_classes = 5


def hub(features: dict[str, object], image: str = "img", label: str = "label") -> ModuleType:
    """A module like `datasets`, of one data set of two rows."""
    module = ModuleType("datasets")

    class Rows(list):
        pass

    def load_dataset(name: str, split: str) -> Rows:
        if name != "someone/pictures":
            raise FileNotFoundError(f"no {name}")
        grey = Image.fromarray(np.full((4, 6), 255 if split == "test" else 0, np.uint8))
        rows = Rows([{image: grey, label: 3}, {image: grey.convert("L"), label: 1}])
        rows.features = features  # type: ignore[attr-defined]
        return rows

    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    return module


def test_a_data_set_of_hugging_face_is_read_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", hub({"img": Image_(), "label": Labels()}))
    read = load_images("hf:someone/pictures")
    assert (read.name, read.shape, read.classes) == ("pictures", (1, 4, 6), 5)
    assert read.labels.tolist() == [3, 1]
    assert bool((read.images == 1).all())
    assert bool((load_images("hf:someone/pictures", "train").images == 0).all())
    with pytest.raises(UsageError, match="raised FileNotFoundError: no other"):
        load_images("hf:other")
    monkeypatch.setitem(sys.modules, "datasets", hub({"text": 0, "label": Labels()}))
    with pytest.raises(UsageError, match=r"a column of images .* got text, label"):
        load_images("hf:someone/pictures")


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"pip install 'lyanet-robustness\[hf\]'"):
        load_images("hf:someone/pictures")


def test_sources_are_known_before_anything_is_read(tmp_path: Path) -> None:
    for name in ("hf:x", str(tmp_path), "package.module:function"):
        require_source(name, None)
    for name in ("mnits", "a b:c", "none/here"):
        with pytest.raises(UsageError, match="or hf:NAME, got"):
            require_source(name, None)


def test_a_command_takes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = load_images("digits")
    for index in range(4):
        pixels = (255 * digits.images[index, 0]).byte().numpy()
        for label in range(10):  # that there are ten classes
            (tmp_path / str(label)).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / str(int(digits.labels[index])) / f"{index}.png")
    words = f"attack digits/resnet --eps 0.01 --attack fgsm --data {tmp_path} --workers 1"
    assert cli.run(lambda: cli.app(words.split(), standalone_mode=False)) == 0
    out = capsys.readouterr().out
    assert " 4 " in out  # images
    assert f"measured on {tmp_path}" in out
