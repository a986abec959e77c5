import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, get_args

import pytest
from pydantic import Field

from robustness.attacks import ATTACKS, AttackKind, Effort
from robustness.certificates import CERTIFICATES, SmoothingCertificate, routine
from robustness.data import load_images
from robustness.errors import UsageError
from robustness.evaluation.jobs.attack import build_attacks
from robustness.evaluation.plan import Plan
from robustness.evaluation.planning import make_plan
from robustness.evaluation.suite import Suite, bundled_suites, load_suite
from robustness.threat import Norm, ThreatModel
from robustness.zoo import load_model


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
    content = suite_file.read_text().replace("samples = 24", "sampels = 80")
    assert "unknown key 'sampels'" in message_of(suite_file, content)


@pytest.mark.parametrize("eps", ["0", "-0.1", '"abc"', '"1/0"', "nan", "inf", "true"])
def test_a_radius_that_is_not_a_positive_number_is_refused(suite_file: Path, eps: str) -> None:
    content = suite_file.read_text().replace("0.05", eps)
    assert "expected a radius above 0" in message_of(suite_file, content)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"Linf"', '"L7"', "expected a norm"),
        ('"lyapunov"', '"magic"', "expected a certificate, one of"),
        ('kind = "fgsm"', 'kind = "luck"', "fgsm"),
        ("samples = 24", "samples = 0", "samples"),
        ('"digits/resnet"', '"digits/lyanet-certified"', "distinct models"),
        ('name = "small"', 'name = "../up"', "name"),
    ],
)
def test_other_mistakes_are_said_in_one_line(
    suite_file: Path, old: str, new: str, expected: str
) -> None:
    assert expected in message_of(suite_file, suite_file.read_text().replace(old, new, 1))


PGD_AT = """
[[attacks]]
kind = "pgd"
steps = {}
threats = [{{ norm = "Linf", eps = [{}] }}]
"""


def test_an_attack_comes_twice_only_where_no_radius_meets_it_twice(suite_file: Path) -> None:
    content = suite_file.read_text().split("[[attacks]]")[0]
    suite_file.write_text(content + PGD_AT.format(5, "0.05") + PGD_AT.format(10, "0.1"))
    twice = [
        (listed.attack.version, *listed.threats)
        for listed in build_attacks(load_suite(str(suite_file)))
    ]
    assert [eps for _, eps in twice] == [ThreatModel(Norm.LINF, 0.05), ThreatModel(Norm.LINF, 0.1)]
    assert len({version for version, _ in twice}) == 2
    content += PGD_AT.format(5, "0.05, 0.1") + PGD_AT.format(10, "0.1")
    expected = "expected distinct kinds of attacks at each radius, got pgd at Linf 0.1 twice"
    assert message_of(suite_file, content).endswith(f"{expected}; remove one")


SMOOTHING = '{ name = "smoothing", sigma = 0.5, samples = 200 }'


def test_a_certificate_is_named_or_a_table_of_its_settings(suite_file: Path) -> None:
    content = suite_file.read_text().replace('"target-seeking"]', f"{SMOOTHING}]")
    suite_file.write_text(content)
    built = load_suite(str(suite_file)).build_certificates("any")
    assert built["smoothing"] == SmoothingCertificate(sigma=0.5, samples=200, seed=0)
    assert built["lyapunov"] is CERTIFICATES["lyapunov"]
    suite_file.write_text("seed = 7\n" + content.replace(SMOOTHING, '"smoothing"'))
    assert load_suite(str(suite_file)).build_certificates("any")["smoothing"].seed == 7


def test_a_certificate_may_have_other_settings_for_models_of_other_names(suite_file: Path) -> None:
    one, other = (
        f'{{ name = "smoothing", models = ["{model}"], sigma = {sigma} }}'
        for model, sigma in (("a", 0.5), ("b", 0.25))
    )
    content = suite_file.read_text()
    suite_file.write_text(content.replace('"target-seeking"', f"{one}, {other}"))
    suite = load_suite(str(suite_file))
    found = [suite.build_certificates(model).get("smoothing") for model in "abc"]
    assert [c and c.sigma for c in found] == [0.5, 0.25, None]
    for clash in (other.replace('"b"', '"b", "a"'), other.replace('"b"', '"?"')):
        twice = content.replace('"target-seeking"', f"{one}, {clash}")
        assert "distinct certificates, got smoothing" in message_of(suite_file, twice)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (f'{SMOOTHING}, "smoothing"', "distinct certificates"),
        ('{ name = "smoothing", sigmas = 0.5 }', "sigmas"),
        ('{ name = "smoothing", sigma = -1.0 }', "sigma"),
        ('{ name = "smoothing", alpha = 1.5 }', "alpha"),
        ('{ name = "lyapunov", sigma = 0.5 }', "sigma"),
    ],
)
def test_settings_that_no_certificate_has_are_named(
    suite_file: Path, entry: str, expected: str
) -> None:
    content = suite_file.read_text().replace('"target-seeking"', entry)
    assert expected in message_of(suite_file, content)


def test_the_settings_of_a_certificate_are_part_of_its_key(suite: Suite) -> None:
    images, model = load_images("digits"), load_model("digits/resnet")
    keys = []
    for seed, sigma in ((0, 0.25), (0, 0.25), (0, 0.5), (1, 0.25)):
        settings = {"certificates": [{"name": "smoothing", "sigma": sigma}], "seed": seed}
        asked = Suite.model_validate(suite.model_dump() | settings)
        plan = Plan.from_json(make_plan(asked, images, [model]).to_json())
        assert plan.suite == asked
        job = next(job for job in plan.jobs if job.kind == "certificate")
        keys.append((job.version, plan.key(job, [0])))
    assert keys[0] == keys[1]
    assert len({version for version, _ in keys}) == len({key for _, key in keys}) == 3


@pytest.mark.parametrize("name", bundled_suites())
def test_a_suite_reaches_another_process_as_it_was(name: str) -> None:
    suite = load_suite(name)
    assert pickle.loads(pickle.dumps(suite)) == suite


def test_an_unknown_suite_suggests_a_near_name() -> None:
    with pytest.raises(UsageError, match="did you mean digits"):
        load_suite("digts")


def test_fractions_are_read_in_pixel_units(suite_file: Path) -> None:
    assert load_suite(str(suite_file)).threats[0].eps == [0.05, 0.1]


def test_all_in_a_list_stands_for_every_certificate_without_settings(suite_file: Path) -> None:
    some = '["lyapunov", "target-seeking"]'
    assert some in suite_file.read_text()
    entry = '{ name = "smoothing", models = ["digits/node", "mnist/*"], samples = 10 }'
    suite_file.write_text(suite_file.read_text().replace(some, f'["all", {entry}]'))
    suite = load_suite(str(suite_file))
    assert list(suite.build_certificates("digits/resnet")) == [*routine(), "program"]
    for model in ("digits/node", "mnist/lyanet"):
        assert list(suite.build_certificates(model)) == [*routine(), "smoothing", "program"]


@dataclass(frozen=True)
class Guess:
    """An attack of one's own, with a setting that is bounded and one that is not set in tables."""

    tries: Annotated[int, Field(ge=1)] = 2
    lucky: bool = False
    name: ClassVar[str] = "guess"

    @property
    def version(self) -> str:
        return f"{self.tries} tries"

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        return None

    def propose(self, model, images, labels, threat, seed):
        return images.unsqueeze(0)


def test_the_fields_of_an_attack_are_the_keys_of_its_table(suite_file: Path) -> None:
    content = suite_file.read_text().split("[[attacks]]")[0]
    table = '[[attacks]]\nkind = "guess"\nsamples = 3\n'
    with ATTACKS.having(AttackKind("guess", Guess)):
        suite_file.write_text(f"{content}{table}tries = 5\n")
        suite = load_suite(str(suite_file))
        (listed,) = build_attacks(suite)
        attack, samples = listed.attack, listed.samples
        assert (attack, samples) == (Guess(tries=5), 3)
        dumped = {"samples": 3, "threats": None, "kind": "guess", "tries": 5, "lucky": False}
        assert suite.model_dump(mode="json")["attacks"] == [dumped]
        assert "attacks.0.tries" in message_of(suite_file, f"{content}{table}tries = 0\n")
        assert "attacks.0.trise" in message_of(suite_file, f"{content}{table}trise = 5\n")
        plan = make_plan(suite, load_images("digits"), [load_model("digits/resnet")])
        versions = {job.version for job in plan.jobs if job.name == "guess"}
        (version,) = versions
        assert version.startswith(f"5 tries, {__name__} of SHA-256 ")


def test_thorough_can_be_asked_for(suite_file: Path) -> None:
    content = suite_file.read_text().split("[[attacks]]")[0]
    stages = {}
    for effort in get_args(Effort):
        suite_file.write_text(f'{content}[[attacks]]\nkind = "worst-case"\neffort = "{effort}"\n')
        (listed,) = build_attacks(load_suite(str(suite_file)))
        attack, threat = listed.attack, listed.threats[0]
        module = load_model("digits/resnet").module
        stages[effort] = [stage.name for stage in attack.stages(module, threat, {})]
    assert stages["thorough"][: len(stages["standard"])] == stages["standard"]
    assert {"fab@deployed", "square@deployed"} <= set(stages["thorough"]) - set(stages["quick"])
