import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagefiles import refusal, sound_or_named

from robustness.data import load_images

RNG = np.random.default_rng(0)
IMAGES = RNG.random((4, 3, 5, 6), dtype=np.float32)
LABELS = np.array([0, 2, 1, 2])


def save(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "street signs.npz"


def test_a_users_images_are_read_and_named_after_the_file(path):
    data = load_images(save(path, images=IMAGES, labels=LABELS))
    assert (data.name, data.split, data.classes, data.shape) == (
        "street signs",
        "test",
        3,
        (3, 5, 6),
    )
    assert torch.equal(data.images, torch.from_numpy(IMAGES))
    assert data.labels.tolist() == LABELS.tolist()


def test_both_splits_read_the_same_images(path):
    name = save(path, images=IMAGES, labels=LABELS)
    train, test = load_images(name, "train"), load_images(name, "test")
    assert train.split == "train"
    assert train.digest == test.digest


def test_a_compressed_archive_is_read_too(path):
    np.savez_compressed(path, images=IMAGES, labels=LABELS)
    assert torch.equal(load_images(str(path)).images, torch.from_numpy(IMAGES))


def test_grey_images_without_a_channel_axis_get_one(path):
    data = load_images(save(path, images=IMAGES[:, 0], labels=LABELS))
    assert data.shape == (1, 5, 6)
    assert torch.equal(data.images[:, 0], torch.from_numpy(IMAGES[:, 0]))


@pytest.mark.parametrize("kind", ["float16", "float64", ">f4"])
def test_any_float_type_becomes_float32(path, kind):
    data = load_images(save(path, images=IMAGES.astype(kind), labels=LABELS))
    assert data.images.dtype == torch.float32
    assert torch.allclose(data.images, torch.from_numpy(IMAGES), atol=1e-3)


def test_images_in_fortran_order_keep_their_pixels(path):
    data = load_images(save(path, images=np.asfortranarray(IMAGES), labels=LABELS))
    assert torch.equal(data.images, torch.from_numpy(IMAGES))


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint64", ">i4"])
def test_any_integer_type_serves_for_labels(path, kind):
    data = load_images(save(path, images=IMAGES, labels=LABELS.astype(kind)))
    assert data.labels.dtype == torch.int64
    assert data.labels.tolist() == LABELS.tolist()


def test_stated_classes_count_though_the_last_has_no_image(path):
    data = load_images(save(path, images=IMAGES, labels=LABELS, classes=43))
    assert data.classes == 43


def test_other_plain_arrays_are_left_alone(path):
    data = load_images(save(path, images=IMAGES, labels=LABELS, weights=np.ones(4)))
    assert len(data) == 4


@pytest.mark.parametrize("kind", ["uint8", "int64", "bool", "complex64"])
def test_pixels_that_are_no_floats_are_refused_with_the_unit(path, kind):
    name = save(path, images=(IMAGES * 255).astype(kind), labels=LABELS)
    refusal(name, path, kind, "floats in [0, 1]", "255")


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(path, strange):
    images = IMAGES.copy()
    images[1, 2, 3, 4] = strange
    refusal(save(path, images=images, labels=LABELS), path, "got 1 that are NaN or infinite")


def test_pixels_beyond_float32_are_refused(path):
    images = IMAGES.astype(np.float64)
    images[0, 0, 0, 0] = 1e300
    refusal(save(path, images=images, labels=LABELS), path, "infinite")


@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0])
def test_pixels_outside_the_unit_interval_are_refused(path, value):
    images = IMAGES.copy()
    images[0, 0, 0, 0] = value
    refusal(save(path, images=images, labels=LABELS), path, "[0, 1]", f"{value:g}")


@pytest.mark.parametrize("shape", [(4,), (4, 30), (0, 3, 5, 5), (4, 0, 5, 5), (4, 1, 1, 1, 1), ()])
def test_a_shape_that_is_not_one_of_images_is_refused(path, shape):
    name = save(path, images=np.zeros(shape, np.float32), labels=LABELS)
    refusal(name, path, f"shape {shape}", "height")


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_are_refused_with_the_transpose(path, channels):
    name = save(path, images=np.zeros((4, 8, 8, channels), np.float32), labels=LABELS)
    refusal(name, path, "channels last", "transpose(0, 3, 1, 2)")


def test_points_given_as_images_of_one_pixel_are_no_channels_last(path):
    name = save(path, images=np.zeros((4, 10, 1, 1), np.float32), labels=LABELS)
    assert load_images(name).shape == (10, 1, 1)


@pytest.mark.parametrize("labels", [LABELS[:3], np.append(LABELS, 0), LABELS[:, None], np.int64(1)])
def test_labels_that_are_not_one_to_an_image_are_refused(path, labels):
    name = save(path, images=IMAGES, labels=labels)
    refusal(name, path, "expected array 'labels' of shape (4,)", f"got shape {labels.shape}")


@pytest.mark.parametrize("kind", ["float32", "bool", "U1"])
def test_labels_that_are_no_integers_are_refused(path, kind):
    refusal(save(path, images=IMAGES, labels=LABELS.astype(kind)), path, "integers")


def test_a_negative_label_is_refused(path):
    refusal(save(path, images=IMAGES, labels=LABELS - 1), path, "got -1")


def test_a_label_that_exceeds_the_stated_classes_is_refused(path):
    name = save(path, images=IMAGES, labels=LABELS, classes=2)
    refusal(name, path, "'classes' is 2", "got 2")


@pytest.mark.parametrize("classes", [np.array([3]), np.float64(3), np.array("3")])
def test_classes_that_are_no_single_integer_are_refused(path, classes):
    name = save(path, images=IMAGES, labels=LABELS, classes=classes)
    refusal(name, path, "'classes' to be one integer")


@pytest.mark.parametrize("held", [["images"], ["labels"], ["x", "y"], []])
def test_a_missing_array_is_told_with_what_there_is(path, held):
    name = save(path, **dict.fromkeys(held, LABELS))
    refusal(name, path, "'images' and 'labels'", *(repr(array) for array in held))


def test_a_missing_file_is_named(path):
    refusal(str(path), path, "no such file")


def test_a_pickled_array_is_refused_and_never_unpickled(path, tmp_path):
    witness = tmp_path / "unpickled"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (witness,))

    for name in ("images", "labels", "classes", "notes"):
        arrays = {"images": IMAGES, "labels": LABELS, name: np.array([Trap()], dtype=object)}
        refusal(save(path, **arrays), path, f"'{name}.npy'", "pickled")
    assert not witness.exists()


def test_a_member_that_is_no_array_is_refused(path):
    save(path, images=IMAGES, labels=LABELS)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("readme.txt", "hello")
    refusal(str(path), path, "'readme.txt'")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_a_file_of_another_format_is_refused(path, content):
    path.write_bytes(content)
    refusal(str(path), path, "expected an .npz file", "another format")


def test_a_lone_array_named_npz_is_refused(path):
    buffer = io.BytesIO()
    np.save(buffer, IMAGES)
    path.write_bytes(buffer.getvalue())
    refusal(str(path), path, "another format")


def test_an_array_header_that_asks_for_exabytes_is_refused(path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999,), }"
    raw = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", raw)
    refusal(str(path), path, "malformed")


def test_an_archive_cut_at_any_length_is_refused(path):
    save(path, images=IMAGES, labels=LABELS)
    whole = path.read_bytes()
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        refusal(str(path), path)


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [False, True])
def test_a_flipped_byte_is_refused_or_changes_nothing(path, compressed):
    (np.savez_compressed if compressed else np.savez)(path, images=IMAGES, labels=LABELS)
    intact = load_images(str(path)).digest
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x07
        path.write_bytes(damaged)
        assert sound_or_named(str(path), path, intact)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(header=st.text("{}()[]'\"\n ,:<f480x", max_size=60).map(str.encode))
def test_a_malformed_array_header_is_refused(path, header):
    raw = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", raw)
    refusal(str(path), path)
