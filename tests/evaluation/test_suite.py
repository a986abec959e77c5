from pathlib import Path

import pytest

from robustness.errors import UsageError
from robustness.evaluation.suite import bundled_suites, load_suite


def message_of(file: Path, content: str) -> str:
    file.write_text(content)
    with pytest.raises(UsageError) as caught:
        load_suite(str(file))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_bundled_suite_is_valid_and_bears_its_own_name() -> None:
    assert {"digits", "digits-quick"} <= set(bundled_suites())
    for name in bundled_suites():
        assert load_suite(name).name == name


def test_a_misspelt_key_is_named(suite_file: Path) -> None:
    content = suite_file.read_text().replace("samples = 80", "sampels = 80")
    assert "unknown key 'sampels'" in message_of(suite_file, content)


@pytest.mark.parametrize("eps", ["0", "-0.1", '"abc"', '"1/0"', "nan", "inf", "true"])
def test_a_radius_that_is_not_a_positive_number_is_refused(suite_file: Path, eps: str) -> None:
    content = suite_file.read_text().replace("0.05", eps)
    assert "expected a radius above 0" in message_of(suite_file, content)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"Linf"', '"L7"', "expected a norm"),
        ('"lyapunov"', '"magic"', "expected certificates among"),
        ('kind = "fgsm"', 'kind = "luck"', "fgsm"),
        ("samples = 80", "samples = 0", "samples"),
        ('"digits/resnet"', '"digits/lyanet-certified"', "distinct models"),
        ('name = "small"', 'name = "../up"', "name"),
    ],
)
def test_other_mistakes_are_said_in_one_line(
    suite_file: Path, old: str, new: str, expected: str
) -> None:
    assert expected in message_of(suite_file, suite_file.read_text().replace(old, new, 1))


def test_an_unknown_suite_suggests_a_near_name() -> None:
    with pytest.raises(UsageError, match="did you mean digits"):
        load_suite("digts")


def test_fractions_are_read_in_pixel_units(suite_file: Path) -> None:
    assert load_suite(str(suite_file)).threats[0].eps == [0.05, 0.1]
