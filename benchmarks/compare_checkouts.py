"""Two checkouts held against each other, bit for bit: radii, verdicts, leaderboards.

Run as `python benchmarks/compare_checkouts.py BEFORE AFTER --data-dir DIR`, with folders of two
checkouts of this repository. Each is asked by its own command line, in a process of its own, so
that nothing but what the two print and write is compared: `certify --csv` of some entries in both
norms, and the leaderboards of some suites, without their timings, costs, environment and date.
What one checkout gave is kept in `--out` under its commit, and taken from there the next time; a
checkout with uncommitted changes is measured again. Exit code 0 if all agrees, 1 with a line for
each thing that does not, 2 if a checkout fails.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

# The entries with proofs of which the whole test set is not embedded in the package.
CERTIFIED = [
    f"{data}/{entry}"
    for data in ("mnist", "fashion-mnist")
    for entry in ("fi-ode", "lyanet-certified", "lyanet-certified-linf", "lyanet-certified-wide")
]
NORMS = ("Linf", "L2")
VARYING = ("timings", "costs", "environment", "created")


class CheckoutError(Exception):
    """A checkout could not be measured."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--entries", nargs="*", default=CERTIFIED, help="zoo names to certify")
    parser.add_argument("--samples", type=int, default=200, help="images of each entry")
    parser.add_argument("--suites", nargs="*", default=["digits-quick"])
    parser.add_argument("--ignore", nargs="*", default=[], metavar="PATTERN")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="results so far")
    asked = parser.parse_args(arguments)
    common = ["--workers", str(asked.workers)]
    if asked.data_dir:
        common += ["--data-dir", str(asked.data_dir.resolve())]
    compared = differing = 0
    try:
        folders = [kept(asked.out.resolve(), side) for side in (asked.before, asked.after)]
        for name, command in questions(asked.entries, asked.samples, asked.suites):
            before, after = (
                answer(side, folder / name, [*command, *common])
                for side, folder in zip((asked.before, asked.after), folders, strict=True)
            )
            compared += 1
            found = [
                line
                for path, line in differences(before, after)
                if not any(fnmatchcase(path, pattern) for pattern in asked.ignore)
            ]
            differing += bool(found)
            print(f"{name}: {f'{len(found)} differences' if found else 'the same'}")
            for line in found:
                print(f"  {line}")
    except CheckoutError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 2
    print(f"{compared - differing} of {compared} agree bit for bit")
    return 1 if differing else 0


def questions(
    entries: Sequence[str], samples: int, suites: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """What each checkout is asked: the name of the answer, and the command without its file."""
    for entry in entries:
        for norm in NORMS:
            name = f"{entry.replace('/', '.')}.{norm}.{samples}.csv"
            yield name, ["certify", entry, "--norm", norm, "--samples", str(samples), "--csv"]
    for suite in suites:
        yield Path(suite).stem, ["evaluate", str(suite), "--out"]


def kept(out: Path, checkout: Path) -> Path:
    """The folder for what a checkout gives: its commit's, or an empty one if it has none."""
    git = ["git", "-C", str(checkout)]
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    if changed.returncode == 0 == commit.returncode and not changed.stdout.strip():
        folder = out / commit.stdout.strip()[:12]
    else:
        folder = out / f"uncommitted-{os.getpid()}-{checkout.resolve().name}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def answer(checkout: Path, file: Path, command: Sequence[str]) -> Any:
    """What a checkout says: rows by image for a CSV, a leaderboard for a folder.

    Raises:
        CheckoutError: its command ended with another exit code than 0.
    """
    option = next(i for i, word in enumerate(command) if word in ("--csv", "--out"))
    table = command[option] == "--csv"
    if not (file if table else file / "leaderboard.json").exists():
        # Written beside its place first: a killed run leaves no half of an answer behind.
        target = file.with_name(f"{file.name}.part") if table else file
        words = [*command[: option + 1], str(target), *command[option + 1 :]]
        done = subprocess.run(
            [sys.executable, "-m", "robustness", *words],
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise CheckoutError(
                f"{checkout}: expected `robustness {' '.join(words)}` to end with exit code 0, "
                f"got {done.returncode}: {' '.join(last)}"
            )
        if table:
            target.replace(file)
    if table:
        with file.open(newline="", encoding="utf-8") as lines:
            return {row["index"]: row for row in csv.DictReader(lines)}
    content = json.loads((file / "leaderboard.json").read_text(encoding="utf-8"))
    return {name: value for name, value in content.items() if name not in VARYING}


def differences(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Where two answers differ: the path of each place, and a line that names both values.

    Numbers are compared as they are written, which is the shortest text that reads back as the
    same float: two that print alike are the same to the last bit.
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            here = f"{path}.{key}" if path else str(key)
            if key in before and key in after:
                yield from differences(before[key], after[key], here)
            else:
                yield here, f"{here}: only {'before' if key in before else 'after'}"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differences(old, new, f"{path}.{number}")
    elif repr(before) != repr(after):
        yield path, f"{path}: {shown(before)} before, {shown(after)} after"


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


if __name__ == "__main__":
    sys.exit(main())
