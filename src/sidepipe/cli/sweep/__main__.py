"""`python -m sidepipe.cli.sweep`: the same as `sidepipe-sweep`."""

from sidepipe.cli.sweep.command import main

main()
