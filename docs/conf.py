"""The site of docs/, built by `tox -e docs` without a network: a page for each file of Markdown."""

import os
import re
from importlib.metadata import version as version_of

from sphinx.application import Sphinx

project = "lyanet-robustness"
version = release = version_of(project)
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["requirements*"]

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

# As code hosts number the headings of Markdown, which links in these pages go by.
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block"]
# Files beside docs/ are no pages of the site: links lead to where the repository can be read.
# By default that is the checkout that the site is built in, as seen from build/docs/.
REPOSITORY = os.environ.get("DOCS_REPOSITORY", "../..")
myst_url_schemes = {
    "http": None,
    "https": None,
    "mailto": None,
    "repository": REPOSITORY + "/{{path}}",
    "repository-part": REPOSITORY + "/{{path}}#{{fragment}}",
}

napoleon_use_rtype = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
# The signatures of the package name types of other libraries, which have no pages here.
nitpicky = False
python_use_unqualified_type_names = True
# Blocks of commands, of Markdown within and of unknown languages are shown as they are.
highlight_language = "text"

# Not pictures, which are copied into the site.
_OUTWARD = re.compile(r"(?<!!)(\[[^\]]*\])\(\.\./([^)\s#]+)(#[^)\s]*)?\)")
_CODE = re.compile(r"(?<![`:])`([^`]+)`(?!`)(\w?)")


def _lead_outward(app: Sphinx, name: str, source: list[str]) -> None:
    """Links to files beside docs/, in the words of `myst_url_schemes`."""
    del app, name
    source[0] = _OUTWARD.sub(
        lambda m: f"{m[1]}(repository{'-part' if m[3] else ''}:{m[2]}{m[3] or ''})", source[0]
    )


def _mark_code(
    app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]
) -> None:
    """Docstrings mark code by single backticks, reStructuredText by double ones."""
    del app, what, name, of, options
    text = "\n".join(lines)
    lines[:] = _CODE.sub(
        lambda m: f"``{m[1]}``" + (f"\\ {m[2]}" if m[2] else ""), text
    ).splitlines()


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _lead_outward)
    app.connect("autodoc-process-docstring", _mark_code, priority=100)  # before napoleon's
