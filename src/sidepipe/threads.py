"""How many CPU threads a process uses: all that it may, or one where other work has the cores.

Threads wait for each other at every operation, so one that has lost its core to another program
holds up all of them: on a busy machine one thread is then several times as fast as two.
"""

import functools
import logging
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sidepipe import ranks

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# Which steps of a timing run with all threads. The first of each number warms up.
PLAN = (True, True, False, False, True, False, True, False)
WARM_UP = (PLAN.index(True), PLAN.index(False))
# One thread cannot be faster than threads that together do the work of so many cores.
BUSY_CORES = 2.0
GAIN = 1.15  # the other number must be so many times as fast to replace the present one
RECENT = 5  # steps whose median shows the present rate
# Other work also ends, of which the rate of one thread shows little. A timing loses less than the
# time that it takes, so it stays under 1 % of a run.
AGAIN_SECONDS, AGAIN_TIMES = 60.0, 100.0


class ThreadChoice:
    """Chooses between all threads of a process and one, by timing steps that the run does anyway.

    It times both when it starts, when the rate has halved since, and again after 100 times as long
    as the timing took. most: all threads, at least 2. wall, cpu: seconds on a clock, and seconds
    that the process has spent on all cores together.
    """

    def __init__(
        self,
        most: int,
        wall: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self.most, self._wall, self._cpu = most, wall, cpu
        self._chosen = most
        self._begin_timing()

    @property
    def is_timing(self) -> bool:
        """Whether the next step belongs to a timing."""
        return self._seconds is not None

    @property
    def num_threads(self) -> int:
        """Threads of the next step."""
        if self._seconds is None:
            return self._chosen
        return self.most if PLAN[len(self._seconds)] else 1

    def start(self) -> None:
        """A step starts."""
        self._started = self._wall(), self._cpu()

    def stop(self) -> None:
        """The step that started last ends."""
        now = self._wall()
        seconds = max(now - self._started[0], 1e-9)
        if self._seconds is not None:
            self._seconds.append(seconds)
            self._cores.append((self._cpu() - self._started[1]) / seconds)
            self._decide(now)
            return
        self._recent.append(seconds)
        has_halved = len(self._recent) == RECENT and (
            statistics.median(self._recent) > 2 * self._usual
        )
        if has_halved or now >= self._again:
            self._begin_timing()

    def _begin_timing(self) -> None:
        self._began = self._wall()
        self._seconds: list[float] | None = []
        self._cores: list[float] = []

    def _decide(self, now: float) -> None:
        """Ends the timing where its steps are enough to choose."""
        assert self._seconds is not None
        all_suffice = len(self._seconds) == 2 and self._cores[1] >= BUSY_CORES
        if len(self._seconds) < len(PLAN) and not all_suffice:
            return
        seconds = {self.most: _median(self._seconds, True), 1: _median(self._seconds, False)}
        before, other = self._chosen, 1 if self._chosen == self.most else self.most
        if seconds[other] * GAIN < seconds[before]:
            self._chosen = other
            log.info("%s", self._change(seconds))
        self._usual, self._seconds = seconds[self._chosen], None
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._again = now + max(AGAIN_SECONDS, AGAIN_TIMES * (now - self._began))

    def _change(self, seconds: Mapping[int, float]) -> str:
        """What is chosen, with the rates, and with the reason where it is seen."""
        other = 1 if self._chosen == self.most else self.most
        said = f"{_threads(self._chosen)}: {1 / seconds[self._chosen]:.3g} steps/s"
        if math.isfinite(seconds[other]):
            said += f" against {1 / seconds[other]:.3g} with {other}"
        is_descheduled = self._chosen == 1 and _median(self._cores, False) < 0.9
        return said + ("; other work keeps the cores busy" if is_descheduled else "")

    def settle(self, step: Callable[[], object]) -> None:
        """Chooses by repeating `step`, for steps that are compiled for their number of threads."""
        while self.is_timing:
            self.run(step)

    def run(self, step: Callable[..., Result], *arguments: Any) -> Result:
        """`step(*arguments)`, timed, with the number of threads that is chosen for it."""
        import torch

        torch.set_num_threads(self.num_threads)
        self.start()
        result = step(*arguments)
        self.stop()
        return result


def _threads(number: int) -> str:
    return "1 thread" if number == 1 else f"{number} threads"


def _median(values: Sequence[float], with_all: bool) -> float:
    """Of the steps with all threads or with one, without those that warm up; infinite for none."""
    counted = [v for i, v in enumerate(values) if PLAN[i] == with_all and i not in WARM_UP]
    return statistics.median(counted) if counted else math.inf


@functools.cache
def available() -> int:
    """CPU threads that this process may use, as it was when first called.

    At most torch's default (OMP_NUM_THREADS, or the cores of the process's affinity), what Slurm
    gave the task, and the CPU quota of its control groups, as of a container.
    """
    import torch

    return min([torch.get_num_threads(), *of_slurm(os.environ), *of_control_groups()])


def of_slurm(environment: Mapping[str, str]) -> Iterator[int]:
    """CPUs of a Slurm task; without binding to cores its affinity is the whole node."""
    if each := environment.get("SLURM_CPUS_PER_TASK"):
        yield int(each)
    elif of_node := environment.get("SLURM_CPUS_ON_NODE"):
        yield max(1, int(of_node) // ranks.tasks_per_node())


def of_control_groups(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[int]:
    """Cores that the CPU quotas of the process's control groups (versions 1 and 2) come to."""
    lines = own.read_text().splitlines() if own.exists() else []
    group = next((line[4:] for line in lines if line.startswith("0::/")), "")
    folders = [root, *(root / part for part in [group, *map(str, Path(group).parents)] if part)]
    limits = [path.read_text().split() for f in folders if (path := f / "cpu.max").is_file()]
    quota, period = (root / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
    if quota.is_file() and period.is_file():
        limits.append([quota.read_text(), period.read_text()])
    for most, per in limits:
        if most != "max" and int(most) > 0:
            yield max(1, math.ceil(int(most) / int(per)))
