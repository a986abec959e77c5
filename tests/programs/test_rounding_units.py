"""What is charged for transcendental functions, against float32 numbers of every exponent."""

from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from robustness.programs.operations.elementwise import CURVES

FILE = Path(__file__).parents[2] / "benchmarks" / "rounding_units.py"
# The least and the largest normal number, in bits, and a step that comes to all mantissas' kinds.
LEAST, BEYOND, STEP = 2**23, 255 * 2**23, 16381
NAMES = sorted(CURVES)


@pytest.fixture(scope="module")
def units() -> ModuleType:
    spec = spec_from_file_location(FILE.stem, FILE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def of_every_exponent() -> Tensor:
    bits = torch.arange(LEAST, BEYOND, STEP, dtype=torch.int32)
    return torch.cat([bits.view(torch.float32), -bits.view(torch.float32)])


@pytest.mark.parametrize("name", NAMES)
def test_no_function_errs_by_more_than_half_of_what_is_charged(
    units: ModuleType, of_every_exponent: Tensor, name: str
) -> None:
    found = units.worst_of(name, CURVES[name], of_every_exponent)
    assert found.numbers > 50_000
    assert 0 < found.share <= 0.5
    # Few numbers at a time are computed by other code too.
    few = of_every_exponent[7 * 4_000 : 7 * 4_030].abs().split(7)
    assert max(units.worst_of(name, CURVES[name], part).share for part in few) <= 0.5


def test_a_charge_that_is_too_small_is_seen(units: ModuleType, of_every_exponent: Tensor) -> None:
    too_small = replace(CURVES["gelu"], absolute=8.0)
    assert units.worst_of("gelu", too_small, of_every_exponent).share > 1


@pytest.mark.parametrize("others", [1, 16])
def test_softmax_errs_by_less_than_half_of_its_charge(
    units: ModuleType, of_every_exponent: Tensor, others: int
) -> None:
    assert 0 < units.worst_of_softmax(of_every_exponent, others).share <= 0.5
