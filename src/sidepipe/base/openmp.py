"""The time that OpenMP threads spin while they wait for each other, set at import.

libgomp reads it when torch loads libgomp, so this module is imported first and loads nothing.
"""

import os

# By default libgomp spins for about 3 ms (libgomp/env.c), Intel's and LLVM's runtimes for 200 ms.
# Where other work occupies the core of the last thread, every operation loses that time.
# benchmarks/threads.py compares the values.
SHORT_SPIN = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}


def spin_briefly() -> None:
    """Sets a short spin in the environment of this process and its children.

    Keeps a variable that the user set; OMP_WAIT_POLICY replaces both.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in SHORT_SPIN.items():
            os.environ.setdefault(name, value)
