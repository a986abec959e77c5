"""Where words for people go: answers to standard output, all else to standard error."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import Progress, ProgressColumn
from rich.segment import Segment

from robustness.errors import one_line, printable


class Terminal(Console):
    """A console that no text can steer: control characters in it are escaped.

    Its reader may leave; what is said then goes nowhere, and the work goes on.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """The pieces of what is printed; rich's own controls are marked as such."""
        for text, style, control in super().render(renderable, options):
            lines = text if control else "\n".join(map(printable, text.split("\n")))
            yield Segment(lines, style, control)

    def on_broken_pipe(self) -> None:
        """Where rich by itself would end the process with exit code 1."""
        discard(self.file)


def discard(stream: IO[str]) -> None:
    """Send what a stream that cannot be written to still holds, and all to come, nowhere."""
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
    except (OSError, ValueError):  # closed, or no file of the operating system
        return


def progress_bar(columns: Iterable[ProgressColumn], quiet: bool) -> Progress:
    """Progress on standard error, for someone who watches a terminal."""
    return Progress(*columns, console=remarks, disable=quiet or not remarks.is_terminal)


answers = Terminal()
remarks = Terminal(stderr=True, soft_wrap=True, highlight=False)


def remark(text: str) -> None:
    """Say in one line on standard error what has happened, while the work goes on."""
    with suppress(OSError):
        remarks.print(escape(one_line(text)))
