"""What can be named and what can be added, as the help of the commands shows it.

`--plugin MODULE`, anywhere on a command line, imports a module that adds to the registries before
anything else is looked at, so that what it adds is in the help, too.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer
import typer.main

from robustness.attacks import ATTACKS, VIEWS
from robustness.certificates import CERTIFICATES, last_resorts, routine
from robustness.data import DATASETS
from robustness.data.own import FORMS
from robustness.errors import UsageError
from robustness.evaluation.executors import EXECUTORS
from robustness.evaluation.jobs import KINDS
from robustness.evaluation.jobs.base import release_of_kind
from robustness.registry import load_plugin
from robustness.reporting.columns import COLUMNS
from robustness.zoo import ZOOS

_OPTION = "--plugin"


def plugin_option() -> Any:
    """The option, for the parameters of any command: it is acted on before they are parsed."""
    carrier = typer.Typer(add_completion=False)

    @carrier.command()
    def carry(
        plugin: Annotated[
            list[str] | None,
            typer.Option(
                _OPTION,
                metavar="MODULE",
                expose_value=False,
                help="Import a module that adds attacks, certificates, views, operations, data "
                "sets, executors, kinds of jobs, report columns or zoo folders; once for each. "
                "Its code is run.",
            ),
        ] = None,
    ) -> None:
        del plugin

    return typer.main.get_command(carrier).params[0]


def load_named(words: Sequence[str]) -> None:
    """Import the plugins that a command line names.

    Raises:
        UsageError: one cannot be imported.
    """
    before_dashes = list(words[: words.index("--")] if "--" in words else words)
    for place, word in enumerate(before_dashes):
        name, is_given, value = word.partition("=")
        module = value if is_given else "".join(before_dashes[place + 1 : place + 2])
        if name == _OPTION and module:
            load_plugin(module)


def settings_line(kind: str) -> str:
    """An attack's settings with their defaults, in words."""
    settings = ATTACKS[kind].settings
    if not settings:
        return f"{kind}: no settings"
    return f"{kind}: {', '.join(map(_setting, settings, settings.values()))}"


def require_settings(kind: str, settings: Mapping[str, object]) -> None:
    """Insist that an attack has these settings.

    Raises:
        UsageError: it is none, or has not; all that it has are named.
    """
    known = ATTACKS.require(kind).settings
    for name in settings:
        if name not in known:
            has = f"one of {', '.join(known)}" if known else "of which it has none"
            raise UsageError(
                f"expected a setting of the attack {kind}, {has}, got {name!r}; correct it"
            )


def _setting(name: str, default: object) -> str:
    if default is dataclasses.MISSING:
        return name
    return f"{name} = {'unset' if default is None else default}"


def named(command: str, option: str) -> str | None:
    """What the help of a command says of an option that takes a name; None for any other."""
    match command, option:
        case "attack", "attack":
            return f"One of {_listed(ATTACKS)}."
        case "certify", "certificate":
            resorts = last_resorts(routine())
            dear = [name for name in CERTIFICATES if name not in [*routine(), *resorts]]
            return (
                f"Run only this one of {_listed(CERTIFICATES)}; {_listed(dear)} run only if named, "
                f"{_listed(resorts)} where all others refuse the model."
            )
        case _, "data":
            what = "The suite's" if command == "evaluate" else "The model's own"
            return f"One of {_listed(DATASETS)}, {FORMS}. {what} by default."
        case _, "executor":
            return (
                f"What does the work: {_listed(EXECUTORS)}, or dask://HOST:PORT; as --workers says "
                "by default."
            )
    return None


def listing(command: str) -> Iterator[str]:
    """What stands at the end of a command's help, a paragraph each."""
    if command == "attack":
        yield f"Settings, for --set: {'; '.join(map(settings_line, ATTACKS))}."
    if command == "evaluate":
        yield f"Attacks of a suite: {_listed(ATTACKS)}."
        yield f"Certificates of a suite: {_listed(CERTIFICATES)}."
    if command in ("attack", "evaluate") and (
        added := [m.name for m in VIEWS.values() if m.release]
    ):
        yield f"Views of plugins, which the worst case climbs too: {_listed(added)}."
    if command == "evaluate" and (added := [k for k in KINDS if release_of_kind(k)]):
        yield f"Kinds of jobs of plugins, for `jobs` of a suite: {_listed(added)}."
    if command in ("report", "evaluate") and COLUMNS:
        yield f"Report columns of plugins: {_listed(COLUMNS)}."
    if command == "models" and ZOOS:
        folders = (f"{zoo.name} ({zoo.path})" for zoo in ZOOS.values())
        yield f"Zoo folders of plugins: {', '.join(folders)}."


def _listed(names: Any) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last
