"""`python -m hone`: the same as the `hone` command."""

from hone.cli import main

if __name__ == "__main__":
    main()
