"""The official files, downloaded once into the user's cache.

A file enters the cache under its own name only after its checksum has matched, and the
checksum is verified again each time the file is used: what is there is whole, and a file
that went bad on disk is downloaded anew.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch
from tqdm import tqdm

from robustness.data.files import fault
from robustness.errors import os_failure

CACHE = "lyanet-robustness"
ATTEMPTS = 3
TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Source:
    """Where a data set's official files are.

    Attributes:
        url: what a file's name is put behind; it ends in a slash.
        folder: the files' folder, in the cache as in a data folder.
        md5: the published MD5 checksum of each file.
    """

    url: str
    folder: str
    md5: dict[str, str]


SOURCES = {
    "mnist": Source(
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        folder="mnist",
        md5={
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": Source(
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        folder="fashion-mnist",
        md5={
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar-10": Source(
        url="https://www.cs.toronto.edu/~kriz/",
        folder="cifar-10-batches-bin",
        md5={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    ),
    "cifar-100": Source(
        url="https://www.cs.toronto.edu/~kriz/",
        folder="cifar-100-binary",
        md5={"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
    ),
}


def fetch(name: str, file: str) -> Path:
    """The path of an official file in the cache, downloaded if it is not there and sound.

    Args:
        name: the data set, a key of `SOURCES`.
        file: one of its files.

    Raises:
        UsageError: every attempt to download it failed, or the cache cannot be written.
    """
    source = SOURCES[name]
    keeper = pooch.create(
        path=Path(pooch.os_cache(CACHE)) / source.folder,
        base_url=source.url,
        registry={file: f"md5:{source.md5[file]}"},
        retry_if_failed=ATTEMPTS - 1,
    )
    try:
        return Path(keeper.fetch(file, downloader=with_progress))
    # The exceptions of requests are OSErrors; a checksum that does not match is a ValueError.
    except (OSError, ValueError) as error:
        remedy = f"try again, or give --data-dir DIR with the official files in DIR/{source.folder}"
        if isinstance(error, OSError) and is_local(error):
            expected = f"to keep {file} of {name} in {keeper.abspath}"
            raise os_failure(error, expected, remedy) from error
        expected = f"to download {source.url}{file} in up to {ATTEMPTS} attempts"
        raise fault(name, expected, reason(error), remedy) from error


def with_progress(url: str, output_file: str, keeper: pooch.Pooch) -> None:
    """Download one file, with a progress bar if someone watches the terminal.

    Args:
        url: what to download.
        output_file: where to write it.
        keeper: the pooch that asks for it.

    Raises:
        OSError: the server cannot be reached or refuses, or the file cannot be written.
    """

    def prepare(response: Any, **_: Any) -> None:
        # pooch leaves responses, and with them sockets, for the garbage collector to close.
        stack.callback(response.close)
        # Some servers declare a .gz file to be an encoding of the file inside. requests would
        # then unpack it in passing, and the checksum is that of the packed file.
        response.raw.headers.pop("Content-Encoding", None)

    # pooch asks whether the bar is true, which tqdm answers from its total; pooch then sets
    # the total that the server states.
    label = url.rpartition("/")[2]
    with (
        ExitStack() as stack,
        tqdm(total=1, desc=label, unit="B", unit_scale=True, disable=None) as bar,
    ):
        pooch.HTTPDownloader(
            progressbar=bar,
            chunk_size=CHUNK_BYTES,
            timeout=TIMEOUT_SECONDS,
            headers={"Accept-Encoding": "identity"},
            hooks={"response": prepare},
        )(url, output_file, keeper)


def reason(error: OSError | ValueError) -> str:
    """Why a download failed, in a few words."""
    if isinstance(error, ValueError):
        return "a file whose checksum does not match"
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP status {response.status_code}"
    return f"no connection ({type(error).__name__})"


def is_local(error: OSError) -> bool:
    """Whether the operating system complains of the cache, and not requests of the network."""
    # Only the system's own errors carry a number; pooch words some of them anew and loses it.
    return error.errno is not None or isinstance(error, PermissionError | FileExistsError)
