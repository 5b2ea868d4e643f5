"""`python -m sidepipe` is the command `sidepipe`."""

from sidepipe.cli.main import main

if __name__ == "__main__":
    main()
