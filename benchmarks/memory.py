"""The largest memory of any process of a command on many images, over that on a tenth of them.

    python benchmarks/memory.py certify evaluate --data-dir DIR [--images 1000 10000] [--workers 1]

`certify` is `robustness certify cifar-10/lyanet-certified`, `evaluate` a suite of FGSM and its
certificate, with the report; two images are audited. Asked is every process of a command, again and
again, for the most memory that it has had so far, shared libraries included.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from watched import watched

SUITE = """
name = "memory"
data = "cifar-10"
samples = {images}
models = ["cifar-10/lyanet-certified"]
certificates = ["lyapunov"]
decay = false
flow = false
audit = {{ samples = 1, largest = 1 }}
[[threats]]
norm = "L2"
eps = ["36/255"]
[[attacks]]
kind = "fgsm"
"""


def command(name: str, images: int, workers: int, data_dir: Path, folder: Path) -> list[str]:
    """What is run.

    Args:
        name: `certify` or `evaluate`.
        images: how many.
        workers: processes.
        data_dir: folder with the official image files.
        folder: to write to.
    """
    whole = [sys.executable, "-m", "robustness", name]
    if name == "certify":
        whole += ["cifar-10/lyanet-certified", "--samples", str(images), "--audit", "1"]
        whole += ["--csv", str(folder / "radii.csv")]
    else:
        suite = folder / "memory.toml"
        suite.write_text(SUITE.format(images=images))
        whole += [str(suite), "--out", str(folder / "report")]
    return [*whole, "--workers", str(workers), "--data-dir", str(data_dir), "--quiet"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("commands", nargs="+", choices=["certify", "evaluate"])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--images", type=int, nargs=2, default=[1_000, 10_000])
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    for name in asked.commands:
        largest = []
        for images in asked.images:
            with tempfile.TemporaryDirectory() as folder:
                words = command(name, images, asked.workers, asked.data_dir, Path(folder))
                found = sorted((use.kibibytes for use in watched(words)), reverse=True)
            largest.append(found[0])
            each = ", ".join(f"{size / 1024:,.0f}" for size in found)
            print(f"{name}, {images:,} images: MiB of each process {each}", flush=True)
        print(f"{name}: {largest[1] / largest[0]:.3f} of the memory", flush=True)


if __name__ == "__main__":
    main()
