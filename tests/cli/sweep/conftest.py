"""A stand-in for Slurm's commands: they answer from files and write down what they were asked."""

import json
import stat
from pathlib import Path

import pytest

# The state is a folder: `squeue` and `sacct` hold the output of these commands, `submitted` the
# input of sbatch, `refuse` the message with which it refuses, and `most` its limit of jobs.
COMMANDS = {
    "sinfo": '[ ! -e "$STATE/down" ]',
    "squeue": 'cat "$STATE/squeue" 2>/dev/null || true',
    "sacct": 'cat "$STATE/sacct" 2>/dev/null || true',
    "scancel": 'echo "$@" >> "$STATE/cancelled"',
    "scontrol": 'echo "MaxJobCount             = 10000"; echo "$@" >> "$STATE/scontrol"',
    "sbatch": """
[ -e "$STATE/refuse" ] && { cat "$STATE/refuse" >&2; exit 1; }
[ "$1" = --test-only ] && exit 0
count=$(( $(ls "$STATE/submitted" | wc -l) / 2 ))
gone=$(cat "$STATE/cancelled" 2>/dev/null | wc -l)
[ -e "$STATE/most" ] && [ $(( count - gone )) -ge $(cat "$STATE/most") ] && {
  echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }
number=$(( count + 100 ))
cat > "$STATE/submitted/$number.sh"
echo "$@" > "$STATE/submitted/$number.arguments"
echo "$number;cluster"
""",
}


class Cluster:
    """What the stand-in was asked, and what it says."""

    def __init__(self, state: Path) -> None:
        self.state = state
        (state / "submitted").mkdir(parents=True)

    def says(self, command: str, *lines: str) -> None:
        (self.state / command).write_text("".join(f"{line}\n" for line in lines))

    def refuses(self, message: str = "Invalid partition name specified") -> None:
        (self.state / "refuse").write_text(message)

    def allows(self, most: int) -> None:
        (self.state / "most").write_text(str(most))

    @property
    def scripts(self) -> dict[str, str]:
        """The batch scripts by job id."""
        return {path.stem: path.read_text() for path in sorted(self.state.glob("submitted/*.sh"))}

    @property
    def dependencies(self) -> dict[str, str]:
        """By job id, the dependency that was given to sbatch, without the word afterok."""
        found = {}
        for path in sorted(self.state.glob("submitted/*.arguments")):
            (after,) = [a for a in path.read_text().split() if "dependency" in a] or ["="]
            found[path.stem] = after.partition("=")[2].replace("afterok:", "")
        return found

    @property
    def cancelled(self) -> list[str]:
        path = self.state / "cancelled"
        return path.read_text().split() if path.exists() else []

    def queue_all(self, folder: Path, state: str = "PENDING") -> None:
        """squeue now has every job that was submitted from the sweep in `folder`."""
        paths = sorted(folder.glob("jobs/*.json"))
        self.says(
            "squeue", *(f"{json.loads(p.read_text())['job']}|{state}|Priority|" for p in paths)
        )


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    state, commands = tmp_path / "slurm", tmp_path / "commands"
    commands.mkdir()
    for name, body in COMMANDS.items():
        path = commands / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("STATE", str(state))
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    return Cluster(state)


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
