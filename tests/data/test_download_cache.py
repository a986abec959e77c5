import gzip
import hashlib
import io
import resource
import socket
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from imagefiles import cifar_bytes, idx_bytes, images_28, pixels_32, refusal

from robustness.data import download, load_images
from robustness.errors import OperationalError

IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
MNIST = {
    IMAGES: gzip.compress(idx_bytes(images_28(3)), mtime=0),
    LABELS: gzip.compress(idx_bytes(np.array([4, 5, 6])), mtime=0),
}


@dataclass
class Publisher:
    """A web server of a few files, whose faults a test chooses.

    Attributes:
        files: what it serves.
        faults: for a file, what to do instead of serving it, one call to a request, until
            none is left.
        asked: the files requested, in order.
    """

    files: dict[str, bytes]
    faults: dict[str, list[Callable[[BaseHTTPRequestHandler, bytes], None]]] = field(
        default_factory=dict
    )
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.rpartition("/")[2]
        self.asked.append(name)
        content = self.files[name]
        if self.faults.get(name):
            self.faults[name].pop(0)(handler, content)
        else:
            send(handler, content)


def send(handler: BaseHTTPRequestHandler, content: bytes, **headers: str) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def unavailable(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_error(503)


def broken_off(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Promise the whole file and hang up halfway."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


def corrupted(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    send(handler, content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


def declared_as_encoding(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    send(handler, content, Content_Encoding="gzip")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The user's cache, in a folder of the test's own, and no waiting between attempts."""
    folder = tmp_path / "cache"
    monkeypatch.setattr("pooch.os_cache", lambda project: folder / project)
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder / "lyanet-robustness"


def publish(monkeypatch, name: str, files: dict[str, bytes], url: str) -> None:
    md5 = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
    source = replace(download.SOURCES[name], url=url, md5=md5)
    monkeypatch.setitem(download.SOURCES, name, source)


@pytest.fixture
def serve(monkeypatch, cache) -> Iterator[Callable[[str, dict[str, bytes]], Publisher]]:
    """Start a publisher of a data set's files on this machine."""
    servers = []

    def start(name: str, files: dict[str, bytes]) -> Publisher:
        publisher = Publisher(dict(files))

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        publisher.url = f"http://127.0.0.1:{server.server_port}/some/folder/"
        publish(monkeypatch, name, files, publisher.url)
        return publisher

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def contents(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_files_are_downloaded_once_and_only_those_of_the_split(serve, cache, name):
    publisher = serve(name, MNIST)
    first = load_images(name)
    assert first.labels.tolist() == [4, 5, 6]
    assert contents(cache / name) == [IMAGES, LABELS]
    assert load_images(name).digest == first.digest
    assert publisher.asked == [IMAGES, LABELS]


def test_sound_files_in_the_cache_need_no_network(cache, monkeypatch):
    publish(monkeypatch, "mnist", MNIST, "http://127.0.0.1:1/")
    (cache / "mnist").mkdir(parents=True)
    for file, content in MNIST.items():
        (cache / "mnist" / file).write_bytes(content)
    assert load_images("mnist").labels.tolist() == [4, 5, 6]


def test_a_file_that_went_bad_in_the_cache_is_downloaded_anew(serve, cache):
    publisher = serve("mnist", MNIST)
    intact = load_images("mnist").digest
    path = cache / "mnist" / LABELS
    path.write_bytes(gzip.compress(idx_bytes(np.array([1, 1, 1])), mtime=0))
    assert load_images("mnist").digest == intact
    assert publisher.asked == [IMAGES, LABELS, LABELS]


@pytest.mark.parametrize("fault", [unavailable, broken_off, corrupted])
def test_a_passing_fault_is_mended_by_another_attempt(serve, cache, fault):
    publisher = serve("mnist", MNIST)
    publisher.faults[IMAGES] = [fault, fault]
    assert load_images("mnist").labels.tolist() == [4, 5, 6]
    assert publisher.asked == [IMAGES, IMAGES, IMAGES, LABELS]
    assert contents(cache) == [IMAGES, LABELS]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (unavailable, "HTTP status 503"),
        (broken_off, "checksum does not match"),
        (corrupted, "checksum does not match"),
    ],
)
def test_a_lasting_fault_is_told_in_one_line_and_leaves_nothing_behind(serve, cache, fault, told):
    publisher = serve("mnist", MNIST)
    publisher.faults[IMAGES] = [fault] * 9
    wanted = [publisher.url + IMAGES, told, "--data-dir DIR", "DIR/mnist", "3 attempts"]
    refusal("mnist", *wanted)
    assert publisher.asked == [IMAGES] * download.ATTEMPTS
    assert contents(cache) == []


def test_a_bad_file_in_the_cache_is_not_used_when_it_cannot_be_replaced(cache, monkeypatch):
    publish(monkeypatch, "mnist", MNIST, "http://127.0.0.1:1/")
    (cache / "mnist").mkdir(parents=True)
    for file, content in MNIST.items():
        (cache / "mnist" / file).write_bytes(content[:-1])
    refusal("mnist", "no connection", "--data-dir DIR")


def test_a_server_that_is_not_there_is_told(cache, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/"
    publish(monkeypatch, "mnist", MNIST, url)
    refusal("mnist", url, "no connection", "--data-dir DIR")


def test_a_cache_that_cannot_be_written_is_told(cache, monkeypatch, serve):
    serve("mnist", MNIST)
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    refusal("mnist", str(cache), "--data-dir DIR")


def test_a_server_that_calls_a_gz_file_an_encoding_does_no_harm(serve, cache):
    publisher = serve("mnist", MNIST)
    publisher.faults = {IMAGES: [declared_as_encoding], LABELS: [declared_as_encoding]}
    assert load_images("mnist").labels.tolist() == [4, 5, 6]
    assert publisher.asked == [IMAGES, LABELS]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_a_progress_bar_is_shown_on_a_terminal_alone(serve, cache, monkeypatch, stream, shown):
    serve("mnist", MNIST)
    out = stream()
    monkeypatch.setattr(download, "tqdm", partial(download.tqdm, file=out, ncols=79))
    load_images("mnist")
    bars = [line for line in out.getvalue().split("\r") if "100%" in line]
    assert any(IMAGES in bar for bar in bars) is shown
    assert any(LABELS in bar for bar in bars) is shown


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


CIFAR_10 = {
    # Not in order, as in the official archive.
    f"cifar-10-batches-bin/{file}": cifar_bytes([[label], [9]], pixels_32(2, seed=label))
    for label, file in [
        (4, "data_batch_4.bin"),
        (1, "data_batch_1.bin"),
        (5, "data_batch_5.bin"),
        (0, "test_batch.bin"),
        (2, "data_batch_2.bin"),
        (3, "data_batch_3.bin"),
    ]
}
CIFAR_100 = {
    "cifar-100-binary/train.bin": cifar_bytes([[1, 50], [2, 60]], pixels_32(2)),
    "cifar-100-binary/test.bin": cifar_bytes([[3, 70]], pixels_32(1)),
}


def test_cifar_10_is_read_from_the_downloaded_archive(serve, cache):
    publisher = serve("cifar-10", {"cifar-10-binary.tar.gz": archive(CIFAR_10)})
    assert load_images("cifar-10", "train").labels.tolist() == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert load_images("cifar-10", "test").labels.tolist() == [0, 9]
    assert publisher.asked == ["cifar-10-binary.tar.gz"]
    assert contents(cache) == ["cifar-10-binary.tar.gz"], "nothing is unpacked"


def test_the_archive_and_the_unpacked_folder_give_the_same_images(serve, cache, tmp_path):
    serve("cifar-100", {"cifar-100-binary.tar.gz": archive(CIFAR_100)})
    (tmp_path / "cifar-100-binary").mkdir()
    for name, content in CIFAR_100.items():
        (tmp_path / name).write_bytes(content)
    for split in ("train", "test"):
        packed, plain = load_images("cifar-100", split), load_images("cifar-100", split, tmp_path)
        assert packed.digest == plain.digest


def test_an_archive_without_a_batch_is_refused(serve, cache):
    lacking = {name: raw for name, raw in CIFAR_10.items() if "batch_3" not in name}
    serve("cifar-10", {"cifar-10-binary.tar.gz": archive(lacking)})
    path = cache / "cifar-10-batches-bin" / "cifar-10-binary.tar.gz"
    refusal("cifar-10", path, "data_batch_3.bin", split="train")


@pytest.mark.parametrize("damage", [lambda raw: raw[:-60], lambda raw: b"x" + raw, lambda _: b""])
def test_a_damaged_archive_is_refused(serve, cache, damage):
    serve("cifar-10", {"cifar-10-binary.tar.gz": damage(archive(CIFAR_10))})
    path = cache / "cifar-10-batches-bin" / "cifar-10-binary.tar.gz"
    refusal("cifar-10", path, "archive", "delete it")


def test_every_source_gives_a_checksum_for_each_file_that_is_read():
    wanted = {
        f"{a}-{b}-ubyte.gz" for a in ("train", "t10k") for b in ("images-idx3", "labels-idx1")
    }
    assert set(download.SOURCES["mnist"].md5) == wanted
    assert set(download.SOURCES["fashion-mnist"].md5) == wanted
    for source in download.SOURCES.values():
        assert source.url.endswith("/")
        assert all(len(md5) == 32 for md5 in source.md5.values())


def test_a_cache_on_a_full_disk_is_the_machines_failure_and_keeps_nothing(
    serve, cache, monkeypatch
):
    serve("mnist", MNIST)
    # Else Python would leave halves of what it compiles meanwhile to the processes after.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OperationalError, match="File too large"):
            load_images("mnist")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(cache) == []
