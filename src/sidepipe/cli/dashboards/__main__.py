"""Creates the W&B workspace of a project or a sweep, or updates the one of its name."""

import argparse
import sys


def main() -> None:
    """Entry point of `python -m sidepipe.cli.dashboards`."""
    parser = argparse.ArgumentParser("python -m sidepipe.cli.dashboards", description=__doc__)
    parser.add_argument("--project", default="sidepipe", help="a W&B project; default: sidepipe")
    parser.add_argument("--entity", help="a team or user; default: that of the account")
    parser.add_argument("--group", help="a sweep; default: all runs of the project")
    chosen = parser.parse_args()
    try:
        import wandb

        from sidepipe.cli.dashboards.overview import put

        entity = chosen.entity or str(wandb.Api(timeout=20).default_entity)
        print(put(entity, chosen.project, chosen.group))
    except ModuleNotFoundError as error:
        sys.exit(f"{error}; remedy: pip install 'sidepipe[dashboards]'")
    except Exception as error:  # of many classes
        sys.exit(
            f"no dashboard: {error}; remedy: `wandb login`, WANDB_BASE_URL, --entity, --project"
        )


if __name__ == "__main__":
    main()
