"""`python -m sidepipe.sweep`: the same as `sidepipe-sweep`."""

from sidepipe.sweep.command import main

main()
