"""Every link of what is committed leads to a file, and to a heading that is in it."""

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from torch import nn

from robustness.attacks import audit
from robustness.results.severity import Severity, severity
from robustness.threat import Norm, ThreatModel
from robustness.zoo import zoo_folder

ROOT = zoo_folder().parent
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("benchmarks/*.md"),
    *ROOT.glob("models/*/*/CARD.md"),
    *ROOT.glob("reports/**/*.md"),
    *ROOT.glob("reports/**/*.html"),
]
_WAYS_OUT = ("http://", "https://", "mailto:", "data:")


class _Page(HTMLParser):
    """Links and ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        del tag
        for key, value in attributes:
            if value is not None and key in ("href", "src"):
                self.links.append(value)
            elif value is not None and key == "id":
                self.ids.add(value)


def slug(heading: str) -> str:
    """The anchor that a code host gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@cache
def anchors(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".html":
        return _Page(text).ids
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return {slug(found) for found in re.findall(r"^#+ (.+)$", prose, flags=re.M)}


def links(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    found = _Page(text).links if page.suffix == ".html" else re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in found if not link.startswith(_WAYS_OUT)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_resolve_on_a_code_host(page: Path) -> None:
    broken = []
    for link in dict.fromkeys(links(page)):
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_flag_has_a_heading_that_says_its_severity() -> None:
    text = (ROOT / "docs/attacks.md").read_text(encoding="utf-8").split("## Flags")[1]
    sections = dict(re.findall(r"^### ([\w-]+)\n(\w+)\.", text, flags=re.M))
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(25, 3)), torch.rand(2, 1, 5, 5)
    flags = audit(model, images, model(images).argmax(dim=1), ThreatModel(Norm.LINF, 0.1))
    made = [flag.name for flag in flags]
    assert {"masked-gradients", "silent-success", "incomplete-optimisation"} <= set(made)
    for name in (*made, "adjoint-agreement", "backprop-agreement", "checks-failed"):
        assert name in sections
    for name, said in sections.items():
        assert Severity(said.lower()) is severity(name), name
