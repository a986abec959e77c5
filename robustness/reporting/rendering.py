"""What renders the templates of a report's pages."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from robustness.errors import printable
from robustness.reporting import images, prose, svg, words


def _readable(value: Any) -> Any:
    """Text of others without control characters; what is HTML already, and numbers, as they are."""
    return printable(value) if type(value) is str else value


@cache
def environment() -> Environment:
    """What renders the pages."""
    made = Environment(
        loader=PackageLoader("robustness.reporting", "templates"),
        autoescape=True,  # names and reasons come from users' files
        finalize=_readable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "percent": words.percent,
        "sentence": prose.sentence,
        "unidentified": prose.unidentified,
        "failed": prose.failed,
        "duration": words.duration,
        "moment": words.moment,
        "setting": words.setting,
        "index_list": words.index_list,
        "extent": words.extent,
        "data_uri": images.data_uri,
    }
    made.globals |= {
        "plural": words.plural,
        "symbols": words.SYMBOLS,
        "hue": svg.hue,
        "glossary": prose.GLOSSARY,
        "digest_means": prose.DIGEST,
        "subset_line": prose.subset_line,
    }
    return made
