import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from imagefiles import idx_bytes, idx_paths, images_28, refusal, sound_or_named, write_idx

from robustness.data import load_images

LABELS = [7, 0, 9]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_idx(tmp_path, images_28(3), LABELS)
    return tmp_path


def repack(path: Path, raw: bytes) -> None:
    path.write_bytes(gzip.compress(raw, mtime=0))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("ext", [".gz", ""])
def test_idx_files_are_read_as_unit_pixels_and_labels(tmp_path, name, split, ext):
    raw = images_28(3)
    write_idx(tmp_path, raw, LABELS, split, name, ext)
    data = load_images(name, split, tmp_path)
    assert (data.name, data.split, data.classes, data.shape) == (name, split, 10, (1, 28, 28))
    assert data.images.dtype == torch.float32
    assert torch.equal((data.images * 255).round().to(torch.uint8)[:, 0], torch.from_numpy(raw))
    assert float(data.images.min()) == 0.0
    assert float(data.images.max()) == 1.0
    assert data.labels.dtype == torch.int64
    assert data.labels.tolist() == LABELS


def test_pixels_are_the_correctly_rounded_quotients_by_255(tmp_path):
    raw = np.zeros((1, 28, 28), dtype=np.uint8)
    raw.reshape(-1)[:256] = np.arange(256)
    write_idx(tmp_path, raw, [1])
    pixels = load_images("mnist", "test", tmp_path).images.reshape(-1)[:256]
    exact = torch.arange(256, dtype=torch.float64) / 255
    assert torch.equal(pixels, exact.to(torch.float32))


def test_the_gzipped_file_is_taken_where_a_plain_one_lies_beside_it(root):
    write_idx(root, images_28(5, seed=1), [1, 2, 3, 4, 5], ext="")
    assert load_images("mnist", "test", root).labels.tolist() == LABELS


def test_gzipped_and_plain_files_give_the_same_digest(root, tmp_path):
    plain = tmp_path / "plain"
    write_idx(plain, images_28(3), LABELS, ext="")
    first, second = load_images("mnist", "test", root), load_images("mnist", "test", plain)
    assert first.digest == second.digest


def test_a_missing_file_is_named_with_its_path(root):
    path = idx_paths(root)[1]
    path.unlink()
    refusal("mnist", path, "without .gz", data_dir=root)


def test_a_missing_folder_is_named(tmp_path):
    refusal("mnist", tmp_path / "none", "nothing there", data_dir=tmp_path / "none")


def test_a_data_folder_that_is_a_file_is_named(root):
    refusal("mnist", idx_paths(root)[0], "a file", data_dir=idx_paths(root)[0])


def test_a_folder_where_a_file_should_be_is_named(root):
    path = idx_paths(root)[0]
    path.unlink()
    path.mkdir()
    refusal("mnist", path, data_dir=root)


@pytest.mark.parametrize("which", [0, 1])
def test_a_gzip_file_cut_at_any_length_is_refused_by_name(root, which):
    path = idx_paths(root)[which]
    whole = path.read_bytes()
    lengths = range(len(whole)) if which else range(0, len(whole), 97)
    for length in lengths:
        path.write_bytes(whole[:length])
        refusal("mnist", path, data_dir=root)


@pytest.mark.parametrize("which", [0, 1])
def test_a_flipped_byte_in_a_gzip_file_is_refused_or_changes_nothing(root, which):
    path = idx_paths(root)[which]
    intact = load_images("mnist", "test", root).digest
    whole = path.read_bytes()
    # The first ten bytes are the gzip header, of which some, as its time stamp, are free.
    for place in range(0, len(whole), 1 if which else 41):
        for mask in (0x01, 0xFF):
            damaged = bytearray(whole)
            damaged[place] ^= mask
            path.write_bytes(damaged)
            if place >= 10:
                refusal("mnist", path, data_dir=root)
            assert sound_or_named("mnist", path, intact, root)


def test_a_flipped_pixel_bit_is_called_corrupt(root):
    path = idx_paths(root)[0]
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0x10
    path.write_bytes(damaged)
    refusal("mnist", path, "corrupt", "download it again", data_dir=root)


def test_a_plain_file_named_gz_is_refused_with_the_way_out(root):
    path = idx_paths(root)[0]
    path.write_bytes(idx_bytes(images_28(3)))
    refusal("mnist", path, "expected a gzip file", "drop .gz from its name", data_dir=root)


@pytest.mark.parametrize("ext", [".gz", ""])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("spare", [-1, 1, -2])
def test_data_that_is_too_short_or_too_long_is_refused(tmp_path, ext, which, spare):
    paths = write_idx(tmp_path, images_28(3), LABELS, ext=ext)
    raw = idx_bytes([images_28(3), np.array(LABELS)][which])
    raw = raw + b"\0" * spare if spare > 0 else raw[:spare]
    paths[which].write_bytes(gzip.compress(raw) if ext else raw)
    told = "truncated" if spare < 0 else "bytes to spare"
    refusal("mnist", paths[which], "expected", "got", told, data_dir=tmp_path)


@pytest.mark.parametrize("length", range(8))
def test_a_header_cut_short_is_refused(tmp_path, length):
    paths = write_idx(tmp_path, images_28(3), LABELS, ext="")
    paths[1].write_bytes(idx_bytes(np.array(LABELS))[:length])
    refusal("mnist", paths[1], data_dir=tmp_path)


def test_a_wrong_magic_is_refused(root):
    path = idx_paths(root)[0]
    repack(path, b"PK" + idx_bytes(images_28(3))[2:])
    refusal("mnist", path, "0x00000803", "0x504b0803", data_dir=root)


def test_another_element_type_is_refused(root):
    path = idx_paths(root)[1]
    repack(path, idx_bytes(np.array(LABELS), kind=0x0D))
    refusal("mnist", path, "unsigned bytes", "0x0d", data_dir=root)


def test_swapped_image_and_label_files_are_refused(root):
    images, labels = idx_paths(root)
    aside = root / "aside"
    shutil.move(images, aside)
    shutil.move(labels, images)
    shutil.move(aside, labels)
    refusal("mnist", images, "expected an image file", "got a label file", "swap", data_dir=root)


def test_an_image_file_in_place_of_the_labels_is_refused(root):
    images, labels = idx_paths(root)
    shutil.copy(images, labels)
    refusal("mnist", labels, "expected a label file", "got an image file", data_dir=root)


def test_a_number_of_dimensions_without_a_name_is_refused(root):
    path = idx_paths(root)[0]
    repack(path, idx_bytes(images_28(3)[:, None]))
    refusal("mnist", path, "got 4 dimensions", data_dir=root)


def test_images_of_another_size_are_refused(root):
    path = idx_paths(root)[0]
    repack(path, idx_bytes(images_28(3)[:, :, :27]))
    refusal("mnist", path, "28x28", "28x27", data_dir=root)


@pytest.mark.parametrize("label", [10, 255])
def test_a_label_above_nine_is_refused(tmp_path, label):
    paths = write_idx(tmp_path, images_28(3), [1, label, 2])
    refusal("mnist", paths[1], "labels from 0 to 9", f"{label} at index 1", data_dir=tmp_path)


@pytest.mark.parametrize("labels", [[1, 2], [1, 2, 3, 4]])
def test_label_and_image_counts_that_differ_are_refused(tmp_path, labels):
    images, path = write_idx(tmp_path, images_28(3), labels)
    refusal(
        "mnist", path, images.name, "expected 3 labels", f"got {len(labels)}", data_dir=tmp_path
    )


def test_files_without_any_image_are_refused(tmp_path):
    paths = write_idx(tmp_path, images_28(0), [])
    refusal("mnist", paths[0], "at least one", data_dir=tmp_path)


def test_dimensions_that_promise_terabytes_are_refused_without_reserving_them(root):
    path = idx_paths(root)[0]
    raw = bytearray(idx_bytes(images_28(3)))
    raw[4:16] = b"\xff" * 12
    repack(path, bytes(raw))
    refusal("mnist", "GiB", data_dir=root)
