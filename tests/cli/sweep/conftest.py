"""A stand-in for Slurm's commands: they answer from files and write down what they were asked."""

import json
import stat
from pathlib import Path

import pytest

# The state is a folder: `squeue` and `sacct` hold what these commands print, `submitted` what
# sbatch was asked, and `refuse` makes it refuse.
COMMANDS = {
    "sinfo": "cat /dev/null",
    "squeue": 'cat "$STATE/squeue" 2>/dev/null || true',
    "sacct": 'cat "$STATE/sacct" 2>/dev/null || true',
    "scancel": 'echo "$@" >> "$STATE/cancelled"',
    "sbatch": """
[ -e "$STATE/refuse" ] && { echo "Invalid partition name specified" >&2; exit 1; }
number=$(( $(ls "$STATE/submitted" | wc -l) / 2 + 100 ))
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

    def refuses(self) -> None:
        (self.state / "refuse").touch()

    @property
    def scripts(self) -> dict[str, str]:
        """The batch scripts by array id."""
        return {path.stem: path.read_text() for path in sorted(self.state.glob("submitted/*.sh"))}

    @property
    def dependencies(self) -> dict[str, list[str]]:
        """By array id, the jobs it waits for."""
        found = {}
        for path in sorted(self.state.glob("submitted/*.arguments")):
            (after,) = [a for a in path.read_text().split() if "dependency" in a] or ["::"]
            found[path.stem] = sorted(filter(None, after.split(":")[1:]))
        return found

    @property
    def cancelled(self) -> list[str]:
        path = self.state / "cancelled"
        return path.read_text().split() if path.exists() else []

    def queue_all(self, folder: Path, state: str = "PENDING") -> None:
        """squeue now has every task that was submitted from the sweep in `folder`."""
        lines = []
        for path in sorted(folder.glob("jobs/*.json")):
            record = json.loads(path.read_text())
            lines += [
                f"{record['array']}_{i}|{state}|Priority|" for i in range(len(record["tasks"]))
            ]
        self.says("squeue", *lines)


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
