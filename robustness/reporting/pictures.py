"""Counter-examples as PNG files: the image, the adversarial one, and their difference.

A PNG has 256 levels and an adversarial image may differ by less. The pictures are to look at; the
numbers that refute a certificate are in leaderboard.json.
"""

import numpy as np

from robustness.reporting.images import png
from robustness.results.leaderboard import Leaderboard, Picture

FOLDER = "counterexamples"
PARTS = ("original", "adversarial", "difference")
# Small images are shown with whole pixels enlarged to about this many screen pixels.
_SIDE = 168


def pictures(leaderboard: Leaderboard) -> dict[str, bytes]:
    """Path inside the report's folder to PNG, three for each violation that has a picture."""
    return {
        path_of(number, part): png
        for number, violation in enumerate(leaderboard.soundness.violations)
        if violation.picture is not None
        for part, png in zip(PARTS, _pngs(violation.picture), strict=True)
    }


def path_of(violation: int, part: str) -> str:
    """Where the picture of the violation of that number lies."""
    return f"{FOLDER}/{violation + 1:02d}-{part}.png"


def _pngs(picture: Picture) -> list[bytes]:
    original, adversarial = (
        np.array(pixels, dtype=np.float64).reshape(picture.shape)
        for pixels in (picture.original, picture.adversarial)
    )
    change = adversarial - original
    largest = np.abs(change).max() or 1.0
    return [_png(image) for image in (original, adversarial, 0.5 + change / (2 * largest))]


def _png(image: np.ndarray) -> bytes:
    return png(image, max(1, round(_SIDE / max(image.shape[1:]))))
