"""A suite of many quick units on two Dask workers against the same on two local processes.

    python benchmarks/dask_overhead.py [--rounds 2] [--samples 599]

FGSM, PGD and certificates on two digits models, each time into a new folder, by `--executor dask`
(scheduler, client and workers on this machine) and by `--workers 2`, in turn. Processor time is
that of all processes of a command, which a busy machine disturbs less than a clock's; both count
starting Python and loading models. Printed are both ratios, round by round and of the sums.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from watched import watched

SUITE = """
name = "dask-overhead"
data = "digits"
samples = {samples}
models = ["digits/resnet", "digits/node"]
certificates = ["lyapunov", "lipschitz-margin"]
decay = false
audit = {{ samples = 1, largest = 1 }}
[[threats]]
norm = "Linf"
eps = [0.02, 0.05, 0.1, 0.2]
[[attacks]]
kind = "fgsm"
[[attacks]]
kind = "pgd"
steps = 100
"""
WAYS = {"local": ["--workers", "2"], "dask": ["--executor", "dask", "--workers", "2"]}


def run(way: str, samples: int) -> tuple[float, float]:
    """Processor and wall seconds of the suite."""
    with tempfile.TemporaryDirectory() as folder:
        suite = Path(folder) / "suite.toml"
        suite.write_text(SUITE.format(samples=samples))
        words = [sys.executable, "-m", "robustness", "evaluate", str(suite), "--quiet"]
        words += ["--out", str(Path(folder) / "report"), *WAYS[way]]
        began = time.perf_counter()
        used = watched(words)
        return sum(use.seconds for use in used), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=599)
    asked = parser.parse_args()
    sums = {way: [0.0, 0.0] for way in WAYS}
    for number in range(asked.rounds):
        # Which comes first changes, so that neither finds more warmed up for it.
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            processor, wall = run(way, asked.samples)
            print(f"{way}: {processor:.1f} s of processor time, {wall:.1f} s", flush=True)
            sums[way] = [sums[way][0] + processor, sums[way][1] + wall]
    pairs = zip(sums["dask"], sums["local"], strict=True)
    processor, wall = (dask / local for dask, local in pairs)
    print(f"dask / local: processor time {processor:.3f}, wall {wall:.3f}")


if __name__ == "__main__":
    main()
