"""Where a program runs, and the arithmetic that is asked of it there.

Three rules hold on every device.

- Random draws come from generators of the CPU and are moved, so that they do not depend on where
  the program runs.
- What is measured in float64 (distances, projections, radii) is measured on the CPU.
- On an accelerator torch's deterministic algorithms are on and the precision of TF32 is off.
  Where the CUDA program is the one that predicts, cuDNN is off as well: it may compute
  convolutions by Winograd's or Fourier's transform, whose rounding no bound here covers, while
  torch's own kernels and cuBLAS add up products.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CPU = "cpu"
# Environment variables that make sums something else, whatever the program says.
_OVERRIDES = ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_EMULATE_SINGLE_PRECISION")
# cuBLAS repeats its results only with a workspace of its own for each stream.
_WORKSPACE, _WORKSPACE_SIZE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"


@dataclass(frozen=True)
class Placement:
    """Which devices a run computes on.

    Attributes:
        device: where attacks climb: `cpu`, `cuda`, `cuda:N` or `mps`.
        judge: where the deployed program predicts: candidates are judged there, and what is
            certified is the program that runs there.
    """

    device: str = CPU
    judge: str = CPU

    @property
    def on_cpu(self) -> bool:
        """Whether nothing runs anywhere else."""
        return self.device == self.judge == CPU

    @property
    def hardware(self) -> "Placement":
        """The same in words that tell one kind of hardware from another."""
        return Placement(hardware(self.device), hardware(self.judge))


ON_CPU = Placement()


def hardware(device: str) -> str:
    """What a device is, whatever its number: `cpu`, `cuda NVIDIA H100 80GB HBM3`, `mps`."""
    kind = torch.device(device).type
    return f"{kind} {torch.cuda.get_device_name(device)}" if kind == "cuda" else kind


def described(placement: Placement) -> dict[str, str]:
    """What a report says of a run's devices; nothing of one on the CPU."""
    if placement.on_cpu:
        return {}
    cudnn = ", no cuDNN" if torch.device(placement.judge).type == "cuda" else ""
    arithmetic = f"deterministic algorithms, no TF32{cudnn}"
    return vars(placement.hardware) | {"arithmetic of accelerators": arithmetic}


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes: the device of its first parameter or buffer, or the CPU."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device(CPU) if first is None else first.device


def release_on(module: nn.Module) -> str:
    """The version of torch, and the device that a module is on if it is not the CPU."""
    device = hardware(str(device_of(module)))
    return torch.__version__ if device == CPU else f"{torch.__version__} on {device}"


def beside(module: nn.Module, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors on the device of a module; the very same ones where they are there already."""
    device = device_of(module)
    return tuple(tensor.to(device) for tensor in tensors)


def finish(device: str) -> None:
    """Wait until a device has done all that it was asked; a CPU has."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


@contextmanager
def arithmetic_on(placement: Placement) -> Iterator[None]:
    """Within this context accelerators compute what they compute again; the CPU is left as it is.

    Where an operation has no deterministic algorithm, torch warns and says which it is.
    """
    if placement.on_cpu:
        yield
        return
    predicts_on_cuda = torch.device(placement.judge).type == "cuda"
    # Before the first call of cuBLAS, which reads it once.
    os.environ.setdefault(_WORKSPACE, _WORKSPACE_SIZE)
    known = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn: Any = torch.backends.cudnn
    products = torch.backends.cuda.matmul
    with ExitStack() as stack:
        stack.callback(torch.use_deterministic_algorithms, known, warn_only=warns)
        torch.use_deterministic_algorithms(True, warn_only=True)
        for owner, name, value in (
            (cudnn, "enabled", cudnn.enabled and not predicts_on_cuda),
            (cudnn, "benchmark", False),
            (cudnn, "deterministic", True),
            (cudnn.conv, "fp32_precision", "ieee"),
            (products, "fp32_precision", "ieee"),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


def refusal_of_device(device: torch.device) -> str | None:
    """Why no rounding bound holds for programs of a device as it is set; None where one does."""
    if device.type == CPU:
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        return f"nothing is known of the rounding on {device.type}; certify with --judge cpu"
    if torch.backends.cudnn.enabled:
        return (
            "convolutions on cuda may run by Winograd's or Fourier's transform; switch cuDNN off "
            "(torch.backends.cudnn.enabled = False)"
        )
    if torch.backends.cuda.matmul.fp32_precision != "ieee":
        return "products on cuda may run in TF32; set their fp32_precision to ieee"
    for name in _OVERRIDES:
        if os.environ.get(name, "0") != "0":
            return f"the environment sets products on cuda to a lower precision; unset {name}"
    if torch.is_autocast_enabled("cuda"):
        return "products on cuda are set to a lower precision by autocast; leave it"
    return None


_DRAWN = frozenset({torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal})
_DRAWN_LIKE = frozenset({torch.rand_like, torch.randn_like, torch.randint_like})
_DRAWN_IN_PLACE = frozenset(
    {
        *(Tensor.uniform_, Tensor.normal_, Tensor.bernoulli_, Tensor.random_),
        *(Tensor.exponential_, Tensor.geometric_, Tensor.cauchy_, Tensor.log_normal_),
    }
)
_DRAWN_FROM = frozenset({torch.bernoulli, torch.multinomial, torch.poisson})


class DrawnOnCPU(TorchFunctionMode):
    """Code of others draws from the CPU's global generator, wherever it wants its numbers."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Draw on the CPU, and move."""
        del types
        given = dict(kwargs or {})
        if func in _DRAWN:
            device = given.pop("device", None)
            drawn = func(*args, **given)
            return drawn if device is None else drawn.to(device)
        if func in _DRAWN_LIKE or func in _DRAWN_FROM:
            device = given.pop("device", None) or args[0].device
            return func(args[0].cpu(), *args[1:], **given).to(device)
        if func in _DRAWN_IN_PLACE and args[0].device.type != CPU:
            return args[0].copy_(func(torch.empty_like(args[0], device=CPU), *args[1:], **given))
        return func(*args, **given)
