import numpy as np
import pytest
import torch
from torch.nn import functional

from robustness.numerics import norms
from robustness.numerics.norms import conv_spectral_bound


def dense_norm(weight: torch.Tensor, size: tuple[int, int], padding: int) -> float:
    """The operator norm by a dense SVD of the unrolled convolution."""
    basis = torch.eye(weight.shape[1] * size[0] * size[1], dtype=torch.float64)
    basis = basis.unflatten(1, (weight.shape[1], *size))
    columns = functional.conv2d(basis, weight.double(), padding=padding).flatten(1)
    return float(np.linalg.svd(columns.numpy(), compute_uv=False)[0])


CASES = [
    # outputs, inputs, kernel, height, width, padding
    (3, 2, 3, 5, 5, 1),
    (2, 4, 3, 6, 3, 1),
    (4, 1, 5, 7, 6, 2),
    (2, 3, 3, 5, 4, 0),
    (2, 2, 3, 4, 4, 2),
    (5, 3, 1, 4, 4, 0),
    (2, 2, 5, 2, 2, 2),
    (1, 1, 3, 1, 1, 1),
]


@pytest.mark.parametrize(("outs", "ins", "kernel", "height", "width", "padding"), CASES)
def test_a_small_convolution_is_bounded_by_its_exact_norm(
    outs: int, ins: int, kernel: int, height: int, width: int, padding: int
) -> None:
    weight = torch.randn(outs, ins, kernel, kernel, generator=torch.Generator().manual_seed(1))
    exact = dense_norm(weight, (height, width), padding)
    bound = conv_spectral_bound(weight, (height, width), padding)
    assert exact <= bound <= exact * (1 + 1e-8)


@pytest.mark.parametrize(("outs", "ins", "kernel", "height", "width", "padding"), CASES)
def test_the_torus_bound_holds_without_unrolling(
    outs: int,
    ins: int,
    kernel: int,
    height: int,
    width: int,
    padding: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(norms, "_UNROLLED", 0)
    # Norms are remembered by kernel: none that another test asks for with unrolling.
    for seed in range(100, 120):
        weight = torch.randn(
            outs, ins, kernel, kernel, generator=torch.Generator().manual_seed(seed)
        )
        bound = conv_spectral_bound(weight, (height, width), padding)
        assert dense_norm(weight, (height, width), padding) <= bound


def test_the_torus_bound_of_an_averaging_kernel_is_its_sum() -> None:
    # All entries are positive, so the largest symbol is at frequency zero: the sum, 9. On 40
    # pixels the border hardly matters, but is there: the norm is 9 cos^2-like, less than 9.
    bound = conv_spectral_bound(torch.ones(1, 1, 3, 3), (40, 40), 1)
    assert bound == pytest.approx(9.0, rel=1e-8)


def test_the_norm_of_a_row_of_three_pixels_is_computed_with_its_border() -> None:
    # [1 1 1] on three pixels with zero padding is the matrix [[1,1,0],[1,1,1],[0,1,1]], whose
    # largest eigenvalue is 1 + sqrt(2).
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1] = 1.0
    assert conv_spectral_bound(weight, (1, 3), 1) == pytest.approx(1 + 2**0.5, rel=1e-8)


def test_a_norm_is_never_below_what_power_iteration_finds() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(12, 8, 3, 3, generator=generator).double()
    vector = torch.randn(1, 8, 20, 20, generator=generator).double()
    for _ in range(200):
        vector = functional.conv2d(vector, weight, padding=1)
        vector = functional.conv_transpose2d(vector, weight, padding=1)
        vector = vector / vector.norm()
    found = float(functional.conv2d(vector, weight, padding=1).norm())
    bound = conv_spectral_bound(weight, (20, 20), 1)
    assert found <= bound <= 1.05 * found


def test_a_padding_that_reads_beyond_the_zeros_is_refused() -> None:
    with pytest.raises(ValueError, match="padding from 0 to 2, got 3"):
        conv_spectral_bound(torch.ones(1, 1, 3, 3), (4, 4), 3)


def test_an_image_smaller_than_the_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 pixels"):
        conv_spectral_bound(torch.ones(1, 1, 3, 3), (2, 4), 0)


def test_a_kernel_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="finite kernel"):
        conv_spectral_bound(torch.full((1, 1, 3, 3), torch.nan), (4, 4), 1)
