"""A robustness property in VNN-LIB, the format of the competition of neural network verifiers.

The assertions describe a counterexample, so that *unsat* is a proof.
"""

from decimal import Decimal, localcontext

from jaxtyping import Float
from torch import Tensor

_DIGITS = 100


def box_of(image: Float[Tensor, "c h w"], eps: float) -> list[tuple[Decimal, Decimal]]:
    """The l-infinity ball about an image, within [0, 1]: both ends of each pixel.

    Pixels and eps are numbers of float32 and float64, which decimals hold exactly; so are the
    ends.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        radius, zero, one = Decimal(eps), Decimal(0), Decimal(1)
        pixels = [Decimal(float(pixel)) for pixel in image.flatten()]
        return [(max(p - radius, zero), min(p + radius, one)) for p in pixels]


def vnnlib(
    image: Float[Tensor, "c h w"], prediction: int, classes: int, eps: float, words: list[str]
) -> str:
    """The property that no image within eps has another class.

    Args:
        image: pixels in [0, 1].
        prediction: its class.
        classes: how many there are.
        eps: radius in l-infinity, in pixel units.
        words: lines that stand at its head as comments.
    """
    box = box_of(image, eps)
    others = [label for label in range(classes) if label != prediction]
    lines = [*(f"; {word}" for word in words), ""]
    lines += [f"(declare-const X_{index} Real)" for index in range(len(box))]
    lines += [f"(declare-const Y_{label} Real)" for label in range(classes)]
    lines += ["", "; the pixels, in the order of channels, rows, columns"]
    for index, (low, high) in enumerate(box):
        lines += [f"(assert (>= X_{index} {low:f}))", f"(assert (<= X_{index} {high:f}))"]
    lines += ["", "; a counterexample: another class is as high as that of the prediction"]
    cases = " ".join(f"(and (>= Y_{label} Y_{prediction}))" for label in others)
    lines += [f"(assert (or {cases}))", ""]
    return "\n".join(lines)
