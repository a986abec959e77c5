"""Adversarial images to be looked at: the image, the difference and the adversarial one."""

import base64
import io
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from robustness.reporting import words
from robustness.results.leaderboard import Example, Leaderboard, ModelEntry
from robustness.threat import Norm

PARTS = ("original", "difference", "adversarial")


@dataclass(frozen=True)
class Shown:
    """One image as it is shown.

    Attributes:
        model: whose it is.
        page: of the model, as seen from the report's folder.
        label: what it is and how far the change goes.
        change: how the difference is drawn.
        pngs: of each of `PARTS`.
    """

    model: str
    page: str
    label: str
    change: str
    pngs: dict[str, bytes]


def nearest_of_each(
    leaderboard: Leaderboard, norm: Norm, most: int
) -> list[tuple[ModelEntry, Example]]:
    """The nearest image of each model that has one in a norm, nearest first."""
    found = [
        (entry, row.examples[0])
        for entry in leaderboard.models
        for row in entry.nearest
        if row.norm is norm and row.examples
    ]
    return sorted(found, key=lambda pair: (pair[1].distance, pair[0].name))[:most]


def shown(entry: ModelEntry, page: str, norm: Norm, example: Example) -> Shown:
    """An example with its words and pictures."""
    return Shown(
        entry.name,
        page,
        f"image {example.index}: {example.label} read as {example.prediction}, "
        f"{words.SYMBOLS[norm]} {example.distance:.3g}",
        f"drawn {_times(example.largest)}",
        dict(zip(PARTS, pictures(example), strict=True)),
    )


def _times(largest: float) -> str:
    """By how much a difference is enlarged: its largest change becomes half the range."""
    times = float(f"{0.5 / largest:.2g}")
    return f"{times:,.0f} times as strong" if times >= 10 else f"{times:g} times as strong"


def pixels(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """The original image and the change, shape (c, h, w), rounded as they are stored."""
    original, change = (
        np.frombuffer(zlib.decompress(base64.b64decode(levels)), dtype=np.uint8)
        .reshape(example.shape)
        .astype(np.float64)
        for levels in (example.original, example.change)
    )
    return original / 255, (change - 128) / 127 * example.largest


def pictures(example: Example) -> list[bytes]:
    """PNG of the original, the difference around grey, and the adversarial image."""
    original, change = pixels(example)
    return [png(i) for i in (original, 0.5 + change / (2 * example.largest), original + change)]


def png(image: np.ndarray, factor: int = 1) -> bytes:
    """Pixels of [0, 1], shape (c, h, w) with one channel or three, as PNG, enlarged `factor`."""
    levels = (255 * image.clip(0, 1)).round().astype(np.uint8)
    enlarged = levels.repeat(factor, axis=1).repeat(factor, axis=2)
    picture = Image.fromarray(np.moveaxis(enlarged, 0, 2) if len(image) == 3 else enlarged[0])
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def data_uri(content: bytes, kind: str = "png") -> str:
    """A picture as the source of an image: `png` or `svg+xml`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
