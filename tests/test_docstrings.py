"""Every public name has an example, which runs as it stands."""

import doctest
import inspect
from pathlib import Path

import pytest

import robustness
from robustness import api, registry

PUBLIC = {name: getattr(robustness, name) for name in robustness.__all__} | {
    name: value
    for name, value in vars(api).items()
    if not name.startswith("_") and getattr(value, "__module__", None) == api.__name__
}


def test_names_are_as_many_as_there_are() -> None:
    assert {"evaluate", "attack", "certify", "load_model", "CertifiedSamples"} <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example_that_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # A plugin that an example loads is not there for the workers of later tests.
    monkeypatch.setattr("robustness.registry._loaded", registry.plugins())
    thing = PUBLIC[name]
    names = vars(inspect.getmodule(inspect.unwrap(thing)))
    (test,) = doctest.DocTestFinder(recurse=False).find(
        inspect.unwrap(thing), name, globs=dict(names)
    )
    assert test.examples, f"{name} has no example"
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert result.failed == 0, "".join(said)
