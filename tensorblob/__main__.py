"""`python -m tensorblob`: the command line, see `cli`."""

from tensorblob.cli import main

if __name__ == "__main__":
    main()
