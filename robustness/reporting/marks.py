"""Words of others in Markdown: escaped, so that nothing in them is obeyed."""

from collections.abc import Iterable, Sequence

from robustness.errors import printable


def escaped(value: str) -> str:
    """Foreign words with every character escaped that Markdown or HTML would act on."""
    marked = "".join(f"\\{c}" if c in "\\`*_[]<>|#~$" else c for c in value)
    return " ".join(map(printable, marked.replace("&", "&amp;").split()))


def code(value: str) -> str:
    """A name in code style; plain escaped text where code style cannot hold it."""
    plain = value.isprintable() and not set(value) & set("`|\\<>&")
    return f"`{value}`" if plain else escaped(value)


def markdown_table(
    heading: Sequence[str], rows: Iterable[Sequence[str]], texts: Sequence[bool]
) -> str:
    """A table whose columns are words where `texts` says so, and numbers elsewhere."""
    alignment = ["---" if is_text else "---:" for is_text in texts]
    lines = [heading, alignment, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
