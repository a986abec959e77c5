"""What an attack is: it proposes images and never judges them."""

import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version as release_of_library
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.attacks.views import View
from robustness.numerics.devices import DrawnOnCPU
from robustness.threat import Norm, ThreatModel


@runtime_checkable
class Attack(Protocol):
    """A way to propose images within a threat model."""

    @property
    def name(self) -> str:
        """Name in suites, tables and the store."""
        ...

    @property
    def version(self) -> str:
        """Library, release and settings: what a reader needs to repeat it."""
        ...

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """Why the attack cannot be run at `threat`; None where it can."""
        ...

    def propose(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        threat: ThreatModel,
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """Candidates for each image.

        Args:
            model: pixels to logits, shape (n, classes).
            images: originals in [0, 1], shape (n, c, h, w), on the model's device, as are the
                labels and what comes back.
            labels: true classes, shape (n,).
            threat: the ball that candidates should stay in; the harness checks.
            seed: decides every random draw.

        Returns:
            k candidates per image, shape (k, n, c, h, w), not necessarily inside the ball.
        """
        ...


@runtime_checkable
class Guided(Attack, Protocol):
    """An attack that climbs a view while it watches the deployed model.

    What it finds for one sample depends on that sample, its ball and the seed, and not on the
    other samples of the call. Any other attack is run by the cascade on each sample by itself.
    """

    def pursue(
        self,
        view: View,
        deployed: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        norm: Norm,
        radii: Float[Tensor, " n"],
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """Candidates for each image, found on `view`, meant for `deployed`; see `propose`.

        Each image has a ball of its own: `norm` and float64 `radii` of shape (n,), on the CPU.
        """
        ...


@contextmanager
def modes_kept(*modules: nn.Module) -> Iterator[None]:
    """Restore whether each part of some modules trains or evaluates.

    torchattacks puts back the mode of the module that it was given, and with it all parts of a
    model that is wrapped in one: batch norm of a deployed model would be left in training.
    """
    known = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for part, training in known:
            part.training = training


@contextmanager
def isolated(seed: int, *models: nn.Module) -> Iterator[None]:
    """Run third-party code under its own seed; restore every global state it may disturb.

    pyautoattack's check for dynamic defences removes the process's trace function, and both
    attack libraries draw from torch's global generator, which is the CPU's wherever they compute.
    The modes of `models` are kept.
    """
    python_state, numpy_state, trace = random.getstate(), np.random.get_state(), sys.gettrace()  # noqa: NPY002
    try:
        with modes_kept(*models), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        sys.settrace(trace)


@dataclass(frozen=True)
class Problem:
    """What `Attack.propose` is asked for.

    Attributes:
        model: pixels to logits.
        images: originals in [0, 1], shape (n, c, h, w).
        labels: true classes, shape (n,).
        threat: the ball.
        seed: of every random draw.
    """

    model: nn.Module
    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    threat: ThreatModel
    seed: int


class LibraryAttack(ABC):
    """An attack of another library: its release, the norms it is made for, its global states.

    Attributes:
        name: in suites, tables and the store.
        library: the distribution that it comes from.
        title: what messages call it.
        norm: the only one that it is made for; None for both.
    """

    name: ClassVar[str]
    library: ClassVar[str]
    title: ClassVar[str]
    norm: ClassVar[Norm | None] = None

    @property
    @abstractmethod
    def described(self) -> str:
        """What it is called in the library, and its settings."""

    @abstractmethod
    def search(self, problem: Problem) -> Float[Tensor, "k n c h w"]:
        """Candidates for each image; called under its own seed, global states restored after."""

    @property
    def version(self) -> str:
        """Library, release and settings."""
        return f"{self.library} {release_of_library(self.library)} {self.described}"

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """An attack is refused in a norm that it is not made for."""
        del classes
        if self.norm is None or threat.norm is self.norm:
            return None
        norm = "l-infinity" if self.norm is Norm.LINF else "l2"
        return f"{self.title} is an {norm} attack"

    def propose(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        threat: ThreatModel,
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """Candidates for each image; see `Attack.propose` and the class."""
        on_cpu = images.device.type == "cpu"
        with isolated(seed, model), nullcontext() if on_cpu else DrawnOnCPU():
            return self.search(Problem(model, images, labels, threat, seed))


class Pursuit(ABC):
    """An attack that is defined by how it climbs a view; proposing is climbing the model itself.

    Attributes:
        alone: whether what it proposes is judged alone in its batch, also where a batch is trusted.
    """

    alone: ClassVar[bool] = False

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """Runs in both norms, on any number of classes above one."""
        del threat
        return too_few(classes)

    @abstractmethod
    def pursue(
        self,
        view: View,
        deployed: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        norm: Norm,
        radii: Float[Tensor, " n"],
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """See `Guided.pursue`."""

    def propose(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        threat: ThreatModel,
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """One candidate per image; see `Attack.propose`."""
        deployed = View("deployed", model, faithful=True)
        radii = threat.radii(len(images))
        return self.pursue(deployed, model, images, labels, threat.norm, radii, seed)


def too_few(classes: int) -> str | None:
    """Why nothing can be attacked; None where there are two classes or more."""
    return None if classes > 1 else f"expected two classes or more, got {classes}"
