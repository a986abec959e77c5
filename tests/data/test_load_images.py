import pytest
import torch
from imagefiles import refusal
from sklearn.datasets import load_digits

from robustness.data import DATASETS, load_images


def test_the_digits_need_no_files(tmp_path):
    train, test = load_images("digits", "train", tmp_path), load_images("digits")
    assert (len(train), len(test)) == (1198, 599)
    assert test.shape == (1, 8, 8)
    assert (float(test.images.min()), float(test.images.max())) == (0.0, 1.0)
    assert torch.bincount(test.labels).min() > 50


def test_the_digits_are_those_of_scikit_learn(monkeypatch):
    both = [load_images("digits", split) for split in ("train", "test")]
    monkeypatch.setattr("robustness.data.digits.find_spec", lambda _: None)
    assert [load_images("digits", split).digest for split in ("train", "test")] == [
        images.digest for images in both
    ]
    raw = load_digits()
    assert torch.equal(both[1].images[:, 0].double(), torch.tensor(raw.images[2::3] / 16))
    assert both[1].labels.tolist() == raw.target[2::3].tolist()


@pytest.mark.parametrize("name", ["svhn", "", "images.npy", "mnist/"])
def test_an_unknown_data_set_lists_the_valid_names(name):
    refusal(name, repr(name), ".npz", *DATASETS)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MNIST", "mnist"),
        ("minst", "mnist"),
        ("cifar10", "cifar-10"),
        ("CIFAR100", "cifar-100"),
        ("fashionmnist", "fashion-mnist"),
        ("digit", "digits"),
    ],
)
def test_a_misspelt_data_set_is_met_with_the_nearest_name(name, meant):
    refusal(name, f"did you mean {meant}?")


def test_a_name_like_none_gets_no_suggestion():
    assert "did you mean" not in refusal("svhn")


@pytest.mark.parametrize("name", ["digits", "mnist", "mine.npz", "svhn"])
def test_an_unknown_split_is_refused(name):
    refusal(name, "train or test", "'validation'", split="validation")
