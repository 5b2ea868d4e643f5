"""`python -m sidepipe.cli.dashboards`: makes the W&B workspace, or updates the one of its name."""

import argparse
import sys


def main() -> None:
    """Puts the workspace on the server and prints its address."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", default="sidepipe")
    parser.add_argument("--entity", help="a team or user; the account's own without it")
    parser.add_argument("--group", help="of one sweep's runs only")
    chosen = parser.parse_args()
    try:
        import wandb

        from sidepipe.cli.dashboards.overview import put

        entity = chosen.entity or str(wandb.Api(timeout=20).default_entity)
        print(put(entity, chosen.project, chosen.group))
    except ModuleNotFoundError as error:
        sys.exit(f"{error}; remedy: pip install 'sidepipe[dashboards]'")
    except Exception as error:  # of many kinds, and all mean the same
        sys.exit(
            f"no dashboard: {error}; remedy: `wandb login`, WANDB_BASE_URL, --entity, --project"
        )


if __name__ == "__main__":
    main()
