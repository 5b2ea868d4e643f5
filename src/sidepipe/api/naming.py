"""Errors of shared checks: settings of the command line renamed to arguments of the API."""

from collections.abc import Iterator
from contextlib import contextmanager

ARGUMENTS = {
    "runtime.accelerator=auto": "device='auto'",
    "runtime.accelerator": "device",
    "data.on_duplicates=drop": "on_duplicates='drop'",
    "dpm.path": "path",
    "dpm.variant": "variant",
    "precision=32-true": "precision='32-true'",
}


@contextmanager
def as_arguments() -> Iterator[None]:
    """Renames settings to arguments in ValueError and FileNotFoundError of the body."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        for setting, argument in ARGUMENTS.items():
            text = text.replace(setting, argument)
        raise type(error)(text) from None
