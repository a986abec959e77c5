"""`python -m robustness` is the `robustness` command."""

from robustness.cli import main

if __name__ == "__main__":
    main()
