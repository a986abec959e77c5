"""Leaderboards in the revisions of a git repository."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from robustness.errors import OperationalError, UsageError, one_line
from robustness.results.leaderboard import Leaderboard, leaderboard_file, parse_leaderboard

# Between the fields of a commit, and before each: no text of a commit holds them by rights.
_FIELD, _RECORD = "\x1f", "\x1e"


@dataclass(frozen=True)
class Version:
    """One state of a file in the history of a repository.

    Attributes:
        commit: its hash, 40 hexadecimal digits.
        date: of the commit, ISO 8601.
        subject: the first line of its message.
        path: of the file in that commit, from the root of the repository.
    """

    commit: str
    date: str
    subject: str
    path: str


def read_revision(revision: str, beside: Path) -> Leaderboard:
    """Read a leaderboard as it is in a revision of the repository.

    Args:
        revision: `REV:PATH` as git reads it, from the root of the repository that the working
            folder is in, or `REV` alone for the place of `beside`.
        beside: a leaderboard, or the folder that holds it.

    Raises:
        UsageError: there is no git, no such revision or file, or it is no leaderboard.
    """
    name, is_given, _ = revision.partition(":")
    folder, spec = Path(), revision
    if not is_given:
        file = leaderboard_file(beside)
        folder, spec = file.parent, f"{revision}:./{file.name}"
    if not name or name.startswith("-"):
        raise UsageError(
            f"expected a git revision such as main or main:reports/x/leaderboard.json, got "
            f"{revision!r}; correct --baseline-rev"
        )
    remedy = "correct it, or fetch the revision (`git fetch`; CI clones the last commit only)"
    content = _git(folder, f"a leaderboard at {spec}", remedy, "cat-file", "blob", spec)
    return parse_leaderboard(content, spec)


def versions(path: Path) -> list[Version]:
    """Every state of a file up to the commit that is checked out, the oldest first.

    Args:
        path: a leaderboard, or the folder that holds it, in the repository; renames are followed.

    Raises:
        UsageError: there is no git, no repository, or the file is in no commit.
    """
    file = leaderboard_file(path)
    layout = f"--format={_RECORD}%H{_FIELD}%cI{_FIELD}%s{_FIELD}"
    asked = ("-c", "core.quotePath=false", "log", "--follow", "--name-only", layout, "--")
    remedy = "correct the path"
    log = _git(file.parent, f"a git repository with {path}", remedy, *asked, file.name)
    found = []
    for record in log.decode("utf-8", "replace").split(_RECORD)[1:]:
        commit, date, subject, names = record.split(_FIELD, 3)
        name = next((line for line in names.splitlines() if line.strip()), "")
        if name:  # a merge names none
            found.append(Version(commit, date, subject, name))
    if not found:
        raise UsageError(f"expected commits with {path}, got none; commit it, or correct the path")
    return found[::-1]


def read_version(version: Version, path: Path) -> Leaderboard:
    """Read one state of `path`.

    Raises:
        UsageError: it was deleted there, or is no leaderboard of this schema version.
    """
    spec = f"{version.commit}:{version.path}"
    folder = leaderboard_file(path).parent
    content = _git(folder, f"a file at {spec}", "nothing", "cat-file", "blob", spec)
    return parse_leaderboard(content, f"{version.commit[:8]}:{version.path}")


def _git(folder: Path, expected: str, remedy: str, *words: str) -> bytes:
    if not folder.is_dir():
        raise UsageError(f"expected {expected}, got no folder {folder}; {remedy}")
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        raise UsageError(f"expected {expected}, got no git on the PATH; install it") from None
    except OSError as error:
        said = error.strerror or type(error).__name__
        raise OperationalError(f"expected git to run, got: {said}; run it again") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
        got = one_line(said.removeprefix("fatal: "), 120) or f"exit code {done.returncode}"
        raise UsageError(f"expected {expected}, got: {got}; {remedy}")
    return done.stdout
