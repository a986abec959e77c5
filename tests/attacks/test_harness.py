"""The worst case over stages: order, company and faults change no status."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from toys import CLASSES, Linear, Perceptron, Raises, grey_images, make_problem, minimal_distance

from robustness.attacks import (
    FAB,
    FGSM,
    MIFGSM,
    PGD,
    Ascent,
    Attack,
    CarliniWagner,
    DeepFool,
    Square,
    Stage,
    Status,
    Transfer,
    View,
    default_stages,
    views_of,
    worst_case,
    worst_case_within,
)
from robustness.attacks.lanes import scores_and_gradients
from robustness.attacks.losses import LOSSES
from robustness.data import load_images
from robustness.threat import Norm, ThreatModel
from robustness.zoo import load_model


@dataclass(frozen=True)
class Breaks:
    """An attack whose library has a bug."""

    name: str = "breaks"
    version: str = "0"

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        return None

    def propose(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, seed: int
    ) -> Tensor:
        raise ZeroDivisionError("square of a small image")


class Brightness(nn.Module):
    """Class 1 where the mean pixel exceeds one half; NaN beyond a limit."""

    def __init__(self, limit: float = 2.0) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(dim=1, keepdim=True)
        logits = torch.cat([0.5 - mean, mean - 0.5], dim=1)
        return torch.where(mean > self.limit, torch.nan, logits)


def deployed(model: nn.Module) -> View:
    return View("deployed", model, faithful=True)


def linearised_distance(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The median over samples of margin over slope in l1: about half break at this radius."""
    _, margins, slopes = scores_and_gradients(
        model, images, lambda z, part: LOSSES["margin"](z, labels[part], labels[part])
    )
    return float((-margins / slopes.flatten(1).abs().sum(dim=1)).median())


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("classes", [2, CLASSES])
def test_the_default_pipeline_gives_a_linear_model_its_closed_form_robust_accuracy(
    norm: Norm, classes: int
) -> None:
    model, images, labels = make_problem(classes)
    distance = minimal_distance(model, images, labels, norm)
    order = distance.sort().values
    threat = ThreatModel(norm, float((order[5] + order[6]) / 2))
    outcomes = worst_case(model, images, labels, threat, default_stages(model, threat, "quick"))
    stands = [outcome.status is Status.ROBUST for outcome in outcomes]
    assert stands == (distance > threat.eps).tolist()
    for outcome, nearest in zip(outcomes, distance.tolist(), strict=True):
        if outcome.status is Status.ADVERSARIAL:
            found = outcome.linf if norm is Norm.LINF else outcome.l2
            assert found is not None
            assert nearest * (1 - 1e-4) <= found <= threat.eps
            assert outcome.gradients > 0


@pytest.mark.slow
def test_order_and_skipping_change_no_status() -> None:
    model, images = Perceptron(), grey_images(30)
    labels = model(images).argmax(dim=1)
    threat = ThreatModel(Norm.LINF, linearised_distance(model, images, labels))
    views = views_of(model)
    stages = [
        Stage(Ascent("ce", 3), views[0]),
        Stage(Ascent("margin", 6), views[2]),
        Stage(Square(20), views[0], copies=2),
        Stage(Ascent("targeted", 8), views[1]),
    ]
    expected = worst_case(model, images, labels, threat, stages, seed=5)
    statuses = [outcome.status for outcome in expected]
    assert 5 < statuses.count(Status.ROBUST) < 25
    backwards = worst_case(model, images, labels, threat, stages[::-1], seed=5)
    assert [outcome.status for outcome in backwards] == statuses
    assert [o.attack for o in backwards] != [o.attack for o in expected]
    radii = torch.where(torch.arange(30) % 2 == 0, 1.0, 0.0)
    skipped = worst_case(model, images, labels, threat, stages, radii, seed=5)
    for i, outcome in enumerate(skipped):
        assert outcome.certified is (i % 2 == 0)
        if not outcome.certified:
            assert outcome == expected[i] or outcome.status is expected[i].status
            assert outcome.linf == expected[i].linf
    shuffled = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    again = worst_case(model, images[shuffled], labels[shuffled], threat, stages, seed=5)
    assert [o.status for o in again] == [statuses[i] for i in shuffled.tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits/lyanet", "digits/resnet"])
def test_order_company_and_skipping_change_no_status_of_a_trained_model(name: str) -> None:
    data, model = load_images("digits", "test", None), load_model(name).module
    images, labels = data.images[:40], data.labels[:40]
    threat = ThreatModel(Norm.LINF, 0.08)
    stages = default_stages(model, threat, "quick")
    stages += [Stage(Ascent("margin", 10), view) for view in views_of(model)[1:4]]
    statuses = [o.status for o in worst_case(model, images, labels, threat, stages)]
    assert 3 < statuses.count(Status.ROBUST) < 37
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    again = worst_case(model, images[shuffled], labels[shuffled], threat, stages[::-1])
    assert [o.status for o in again] == [statuses[i] for i in shuffled.tolist()]
    radii = torch.where(torch.arange(40) % 2 == 0, 1.0, 0.0).double()
    skipped = worst_case(model, images, labels, threat, stages, radii)
    assert [o.status for o in skipped[1::2]] == statuses[1::2]


@pytest.mark.parametrize("attack", [PGD(3), FGSM(), MIFGSM(2), DeepFool(2), CarliniWagner(2)])
def test_no_attack_leaves_the_deployed_model_in_training(attack: Attack) -> None:
    """Batch norm in training sees one image as its own mean: every prediction would change."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    model.eval().requires_grad_(False)
    images = grey_images(4)
    labels, before = model(images).argmax(dim=1), model(images)
    threat = ThreatModel(
        Norm.L2 if attack.refusal(ThreatModel(Norm.L2, 1e-6), 3) is None else Norm.LINF, 1e-6
    )
    for view in (deployed(model), *views_of(model)[1:3]):
        outcomes = worst_case(model, images, labels, threat, [Stage(attack, view, copies=2)])
        assert not any(part.training for part in model.modules())
        assert [outcome.status for outcome in outcomes] == [Status.ROBUST] * 4
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("norm", list(Norm))
def test_balls_of_different_sizes_are_searched_as_each_would_be_alone(norm: Norm) -> None:
    model, images, labels = make_problem(CLASSES)
    radii = minimal_distance(model, images, labels, norm).double()
    radii *= torch.where(torch.arange(len(images)) % 3 == 0, 0.8, 1.2)
    views = views_of(model)
    stages = [Stage(Ascent("targeted", 12), views[0]), Stage(Square(5), views[0], copies=2)]
    together = worst_case_within(model, images, labels, norm, radii.double(), stages, seed=5)
    for i in range(len(images)):
        assert (together[i].status is Status.ROBUST) == (i % 3 == 0)
    for i in range(0, len(images), 4):
        threat = ThreatModel(norm, float(radii[i]))
        alone = worst_case(model, images[i : i + 1], labels[i : i + 1], threat, stages, seed=5)
        assert alone[0].status is together[i].status
        assert (alone[0].linf, alone[0].l2) == (together[i].linf, together[i].l2)
        if together[i].image is not None:
            distance = norm.distance(together[i].image[None], images[i : i + 1])
            assert distance <= float(radii[i])


def test_a_certified_sample_is_not_attacked_and_a_wrong_one_is_broken_at_distance_zero() -> None:
    images = torch.tensor([0.48, 0.48, 0.6]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    labels = torch.zeros(3, dtype=torch.int64)
    model, threat = Brightness(), ThreatModel(Norm.LINF, 0.05)
    stages = [Stage(Ascent("margin", 5), deployed(model))]
    certified = torch.tensor([0.06, 0.05, 0.9], dtype=torch.float64)  # the second is not beyond eps
    skipped, broken, wrong = worst_case(model, images, labels, threat, stages, certified)
    assert (skipped.status, skipped.certified, skipped.gradients) == (Status.ROBUST, True, 0)
    assert (broken.status, broken.attack, broken.view) == (
        Status.ADVERSARIAL,
        "ascent-margin-5",
        "deployed",
    )
    assert (wrong.status, wrong.attack, wrong.linf, wrong.certified) == (
        Status.ADVERSARIAL,
        "clean",
        0.0,
        False,
    )


def test_the_adversarial_image_is_handed_back() -> None:
    model, images, labels = make_problem(2)
    threat = ThreatModel(Norm.LINF, 0.5)
    stages = [Stage(Ascent("margin", 10), deployed(model))]
    for i, outcome in enumerate(worst_case(model, images, labels, threat, stages)):
        assert outcome.image is not None
        assert int(model(outcome.image.unsqueeze(0)).argmax()) == outcome.prediction != labels[i]
        assert outcome.linf == float((outcome.image - images[i]).double().abs().max())


def test_a_stage_that_raises_is_noted_and_the_others_still_count() -> None:
    model, images, labels = make_problem(2, count=4)
    threat = ThreatModel(Norm.LINF, 0.5)
    stages = [Stage(Breaks(), deployed(model)), Stage(Ascent("margin", 10), deployed(model))]
    for outcome in worst_case(model, images, labels, threat, stages):
        assert outcome.status is Status.ADVERSARIAL
        assert outcome.errors == ("breaks@deployed: ZeroDivisionError: square of a small image",)


def test_a_sample_that_every_stage_fails_on_is_an_error_and_not_robust() -> None:
    model, images, labels = make_problem(2, count=3)
    stages = [Stage(Breaks(), deployed(model))]
    for outcome in worst_case(model, images, labels, ThreatModel(Norm.LINF, 0.1), stages):
        assert outcome.status is Status.ERROR


def test_a_model_that_raises_inside_the_attack_costs_only_the_samples_at_fault() -> None:
    model = Raises(above=0.53)
    images = grey_images(8)
    images = images - images.flatten(1).mean(dim=1).view(-1, 1, 1, 1) + 0.5
    images[3] += 0.02  # within reach of the brightness at which the model raises
    labels = model.linear(images).argmax(dim=1)
    threat = ThreatModel(Norm.LINF, 0.02)
    stages = [
        Stage(Transfer("bright", Pulls(), Ascent("margin", 5)), deployed(model)),
        Stage(Ascent("ce", 3), deployed(model)),
    ]
    outcomes = worst_case(model, images, labels, threat, stages)
    assert [i for i, outcome in enumerate(outcomes) if outcome.errors] == [3]
    assert "underflow in dt nan" in outcomes[3].errors[0]


class Vast(nn.Module):
    """Has memory for one image at a time, or for none."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.most:
            raise MemoryError
        return images.flatten(1)[:, :2]


@pytest.mark.parametrize("most", [0, 1])
def test_lack_of_memory_is_the_machines_and_no_fact_of_a_model(most: int) -> None:
    stages = [Stage(Ascent("ce", 3), deployed(Vast(most)))]
    with pytest.raises(MemoryError):
        worst_case(
            Vast(most), grey_images(3), torch.zeros(3).long(), ThreatModel(Norm.LINF, 0.1), stages
        )


class Pulls(nn.Module):
    """Every wrong logit grows with brightness: whatever the label, an ascent brightens."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(dim=1, keepdim=True)
        return torch.cat([mean * 2**j for j in range(CLASSES)], dim=1)


def test_a_model_that_always_raises_is_an_error_for_every_sample() -> None:
    model, images = Raises(above=-1), grey_images(3)
    stages = [Stage(Ascent("ce", 3), deployed(model))]
    threat = ThreatModel(Norm.LINF, 0.1)
    for outcome in worst_case(model, images, torch.zeros(3).long(), threat, stages):
        assert outcome.status is Status.ERROR
        assert "ArithmeticError" in outcome.errors[0]


def test_nan_inside_the_ball_is_an_error_and_an_adversarial_image_outranks_it() -> None:
    images, labels = torch.full((1, 1, 2, 2), 0.4), torch.zeros(1, dtype=torch.int64)
    fails, breaks = Brightness(limit=0.45), Brightness(limit=0.55)
    threat = ThreatModel(Norm.LINF, 0.2)
    for model, expected in ((fails, Status.ERROR), (breaks, Status.ADVERSARIAL)):
        stages = [Stage(Ascent("margin", 30), deployed(model)), Stage(Square(50), deployed(model))]
        (outcome,) = worst_case(model, images, labels, threat, stages)
        assert outcome.status is expected, outcome


@pytest.mark.slow
@pytest.mark.parametrize("norm", list(Norm))
def test_the_whole_pipeline_runs_on_two_classes_without_a_failed_stage(norm: Norm) -> None:
    model, images, labels = make_problem(2, count=1)
    threat = ThreatModel(norm, float(minimal_distance(model, images, labels, norm).min()) * 0.9)
    stages = default_stages(model, threat)
    for outcome in worst_case(model, images, labels, threat, stages):
        assert outcome.status is Status.ROBUST
        assert outcome.errors == ()
        assert outcome.gradients > 100


def test_more_effort_only_adds_stages_all_of_which_take_two_classes() -> None:
    threat = ThreatModel(Norm.L2, 0.1)
    sources = {"other": Linear(2)}
    names = [
        [stage.name for stage in default_stages(Linear(2), threat, effort, sources)]
        for effort in ("quick", "standard", "thorough")
    ]
    assert names[0] == names[1][: len(names[0])]
    assert names[1] == names[2][: len(names[1])]
    assert "transfer(other)@deployed" in names[1]
    for stage in default_stages(Linear(2), threat, "thorough", sources):
        assert stage.attack.refusal(threat, 2) is None
        assert stage.attack.version


def test_transfer_breaks_a_model_without_gradients() -> None:
    class Quantised(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (Linear(2)(images) * 10).round() / 10

    images = grey_images(12)
    model = Quantised()
    labels = model(images).argmax(dim=1)
    threat = ThreatModel(Norm.LINF, 0.1)
    own = worst_case(model, images, labels, threat, [Stage(Ascent("ce", 10), deployed(model))])
    stage = Stage(Transfer("linear", Linear(2)), deployed(model))
    transferred = worst_case(model, images, labels, threat, [stage])
    assert sum(o.status is Status.ADVERSARIAL for o in own) <= 2
    assert all(o.status is Status.ADVERSARIAL for o in transferred)
    assert stage.name == "transfer(linear)@deployed"


@pytest.mark.parametrize(
    "attack", [FGSM(), MIFGSM(), FAB(20), Square(200), DeepFool(), CarliniWagner()]
)
def test_each_library_attack_breaks_a_linear_model_beyond_its_distance(attack: object) -> None:
    model, images, labels = make_problem(2, count=3)
    norm = Norm.L2 if isinstance(attack, DeepFool | CarliniWagner) else Norm.LINF
    distance = minimal_distance(model, images, labels, norm)
    threat = ThreatModel(norm, float(distance.max()) * 1.5)
    stage = Stage(attack, deployed(model), copies=2)  # type: ignore[arg-type]
    assert stage.attack.refusal(threat, 2) is None
    for outcome, nearest in zip(
        worst_case(model, images, labels, threat, [stage]), distance.tolist(), strict=True
    ):
        assert outcome.status is Status.ADVERSARIAL, outcome
        found = outcome.linf if norm is Norm.LINF else outcome.l2
        assert found is not None
        assert nearest * (1 - 1e-4) <= found <= threat.eps
        assert outcome.queries + outcome.gradients > 0


def test_square_in_l2_refuses_images_that_it_would_divide_by_zero_on() -> None:
    model = Brightness()
    images, labels = torch.full((1, 1, 4, 4), 0.4), torch.zeros(1, dtype=torch.int64)
    stages = [Stage(Square(10), deployed(model))]
    (outcome,) = worst_case(model, images, labels, ThreatModel(Norm.L2, 0.1), stages)
    assert outcome.status is Status.ERROR
    assert "5 pixels a side" in outcome.errors[0]
