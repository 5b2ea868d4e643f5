"""Creates the W&B workspace of a project or a sweep, or updates the one of its name."""

import argparse
import sys
from pathlib import Path

from sidepipe.engine.places import read_record


def main() -> None:
    """Entry point of `python -m sidepipe.cli.dashboards`."""
    parser = argparse.ArgumentParser("python -m sidepipe.cli.dashboards", description=__doc__)
    parser.add_argument("--project", default="sidepipe", help="a W&B project; default: sidepipe")
    parser.add_argument("--entity", help="a team or user; default: that of the account")
    parser.add_argument("--sweep", help="a sweep; default: all runs of the project")
    parser.add_argument("--outputs", type=Path, default="outputs", help="its runtime.outputs")
    parser.add_argument("--images", action="store_true", help="show the pictures that were sent")
    chosen = parser.parse_args()
    folder = chosen.outputs.expanduser() / "sweeps" / str(chosen.sweep)
    record = read_record(folder) if chosen.sweep else None
    if chosen.sweep and record is None:
        remedy = f"run make sweep SWEEP={chosen.sweep} once more, or give --outputs"
        sys.exit(f"{folder} has no record of the points of the sweep; remedy: {remedy}")
    try:
        import wandb

        from sidepipe.cli.dashboards.overview import put

        entity = chosen.entity or str(wandb.Api(timeout=20).default_entity)
        print(put(entity, chosen.project, record, chosen.images))
    except ModuleNotFoundError as error:
        sys.exit(f"{error}; remedy: pip install 'sidepipe[dashboards]'")
    except Exception as error:  # of many classes
        sys.exit(
            f"no dashboard: {error}; remedy: `wandb login`, WANDB_BASE_URL, --entity, --project"
        )


if __name__ == "__main__":
    main()
