"""The `robustness` command, which is also `python -m robustness`."""

import sys

from robustness.boundary import run


def main() -> None:
    """Run the command line; `--debug` may stand anywhere on it."""
    arguments = [word for word in sys.argv[1:] if word != "--debug"]

    def command() -> object:
        # Inside the boundary, since there may be too little memory for its libraries.
        from robustness.cli import app

        return app(arguments, standalone_mode=False)

    sys.exit(run(command, debug="--debug" in sys.argv))


if __name__ == "__main__":
    main()
