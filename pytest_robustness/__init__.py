"""A plugin of pytest: the fixture `robustness_gate` holds a run to its baseline within a test.

It is loaded by every run of pytest where `robustness` is installed, so it imports nothing of it
until the fixture is used, and stands beside it: what hooks into the import of `robustness`, as
jaxtyping and coverage do, comes later.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import pytest

if TYPE_CHECKING:
    from robustness.reporting.regression import Verdict
    from robustness.results.leaderboard import Leaderboard

_MARKER = "robustness_gate"
_SETTINGS = {"robustness_baseline": "baseline", "robustness_thresholds": "thresholds"}
_OPTIONS = ("baseline", "revision", "thresholds", "tolerance")


class RobustnessGate(Protocol):
    """What the fixture gives: hold a run, its file or its report folder to its baseline.

    Options are `baseline`, `revision`, `thresholds` and `tolerance`, as of
    `robustness.reporting.gate.hold`; what is left out is the marker's, then that of pytest's
    settings. Relative paths are looked for from pytest's root folder.
    """

    def __call__(self, results: "str | Path | Leaderboard", **options: Any) -> "Verdict":
        """Give the verdict; the test fails unless it is a pass."""
        ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """The places of baseline and thresholds, as settings and as options."""
    group = parser.getgroup("robustness")
    for name, what in (
        ("robustness_baseline", "leaderboard, report folder or folder of <suite>.json to hold to"),
        ("robustness_thresholds", "TOML file of limits per model, metric and threat"),
    ):
        parser.addini(name, f"robustness gate: {what}", default="")
        option = f"--{name.replace('_', '-')}"
        group.addoption(option, dest=name, metavar="PATH", help=f"{what} (setting {name})")
    group.addoption(
        "--robustness-update",
        action="store_true",
        dest="robustness_update",
        help="make each run that robustness_gate is given its baseline",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Say what the marker means, for those who ask for strict markers."""
    options = ", ".join(f"{name}=..." for name in _OPTIONS)
    config.addinivalue_line(
        "markers", f"{_MARKER}({options}): what the fixture {_MARKER} holds runs of this test to"
    )


@pytest.fixture
def robustness_gate(request: pytest.FixtureRequest) -> RobustnessGate:
    """Hold a run to its baseline: `robustness_gate(leaderboard)` or `robustness_gate(folder)`.

    The test fails with what the gate found, a line each, unless it passes; what cannot be told
    fails, too. Gives the verdict.
    """
    said: dict[str, Any] = {}
    for setting, name in _SETTINGS.items():
        if place := request.config.getoption(setting) or request.config.getini(setting):
            said[name] = place
    for marker in reversed([*request.node.iter_markers(_MARKER)]):
        said = _joined(said, marker.kwargs)

    def hold(results: "str | Path | Leaderboard", **options: Any) -> "Verdict":
        return _hold(request, results, _joined(said, options))

    return hold


def _joined(before: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Options, those said later first; a baseline and a revision are one in place of the other."""
    if unknown := sorted(later.keys() - set(_OPTIONS)):
        _fail(f"expected options of {', '.join(_OPTIONS)}, got {unknown[0]!r}; correct it")
    places = ("baseline", "revision")
    if any(later.get(place) is not None for place in places):
        before = {name: value for name, value in before.items() if name not in places}
    return before | later


def _hold(request: pytest.FixtureRequest, results: Any, options: dict[str, Any]) -> "Verdict":
    from robustness.errors import UsageError
    from robustness.reporting import gate

    root = request.config.rootpath
    run = _found(root, results)
    for name in ("baseline", "thresholds"):
        options[name] = _found(root, options.get(name))
    try:
        if request.config.getoption("robustness_update"):
            if not isinstance(options["baseline"], Path) or options.get("revision") is not None:
                _fail("expected a baseline that is a file or folder to update, got none; name it")
            asked = {name: value for name, value in options.items() if name != "revision"}
            options["baseline"], _ = gate.update_baseline(run, **asked, accept=True)
        verdict = gate.hold(run, **options).verdict
    except UsageError as error:
        _fail(str(error))
    request.node.user_properties.append((_MARKER, str(verdict.outcome)))
    if verdict.exit_code:
        _fail("\n".join([str(verdict.outcome), *verdict.findings]))
    return verdict


def _found(root: Path, place: Any) -> Any:
    return root / place if isinstance(place, (str, Path)) else place


def _fail(reason: str) -> NoReturn:
    pytest.fail(f"robustness gate: {reason}", pytrace=False)
