"""Files to begin with: a suite and a factory or recipe, written over no other file."""

from enum import StrEnum
from importlib import resources
from pathlib import Path

from robustness.errors import UsageError, os_failure
from robustness.inputs import folder_to_write

_FOLDER = "templates"


class Template(StrEnum):
    """What one begins with."""

    CLASSIFIER = "classifier"
    TORCHDIFFEQ = "torchdiffeq"
    ZOO = "zoo"


# What each template is of, and where each file goes.
_FILES = {
    Template.CLASSIFIER: {"classifier.txt": "own_model.py", "suite.txt": "suite.toml"},
    Template.TORCHDIFFEQ: {"torchdiffeq.txt": "own_model.py", "suite.txt": "suite.toml"},
    Template.ZOO: {"recipe.txt": "own/recipe.toml", "suite-zoo.txt": "suite.toml"},
}
_NEXT = {
    Template.CLASSIFIER: "python own_model.py && robustness doctor own_model:model --data digits",
    Template.TORCHDIFFEQ: "python own_model.py && robustness doctor own_model:model --data digits",
    Template.ZOO: "robustness train own && robustness doctor own",
}


def start(folder: Path, template: str) -> tuple[list[Path], str]:
    """Write the files of a template.

    Args:
        folder: where; it is made if need be.
        template: `classifier`, `torchdiffeq` or `zoo`.

    Returns:
        What was written, and the command that comes next.

    Raises:
        UsageError: there is no such template, or one of the files is there; nothing is written.
    """
    if template not in list(Template):
        raise UsageError(
            f"expected a template, one of {', '.join(Template)}, got {template!r}; correct it"
        )
    chosen = Template(template)
    folder_to_write(folder)
    files = {folder / name: source for source, name in _FILES[chosen].items()}
    for file in files:
        if file.exists() or file.is_symlink():
            raise UsageError(
                f"{file}: expected no file, got one, which is left as it is; name another folder"
            )
    texts = resources.files("robustness.starting") / _FOLDER
    for file, source in files.items():
        content = (texts / source).read_bytes()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("xb") as stream:  # one that came since is not written over either
                stream.write(content)
        except OSError as error:
            raise os_failure(error, f"to write {file}", "name another folder") from None
    return list(files), _NEXT[chosen]
