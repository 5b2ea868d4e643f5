"""How many CPU threads a process uses: all that it may, or one where other work has the cores.

Threads wait for each other at every operation, so one that has lost its core to another program
holds up all of them: on a busy machine one thread is then several times as fast as two.
"""

import functools
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from sidepipe.engine import ranks

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# Which steps of a timing run with all threads. The first of each number warms up.
PLAN = (True, True, False, False, True, False, True, False)
WARM_UP = (PLAN.index(True), PLAN.index(False))
# One thread cannot be faster than threads that together do the work of so many cores.
BUSY_CORES = 2.0
CLEAR = 3.0  # a timing ends early where one number is so many times as fast
GAIN = 1.15  # the other number must be so many times as fast to replace the present one
RECENT = 5  # steps whose median shows the present rate
# A process on one thread has its core to itself, or shares it with other work.
ALONE, SHARED = 0.97, 0.9
# When to time again, in multiples of the time that the last timing lost by the slower number.
SOONEST_TIMES, AGAIN_TIMES, AGAIN_SECONDS = 20.0, 100.0, 60.0


@dataclass(frozen=True)
class Step:
    """How long a step took, and how many cores the process kept busy."""

    seconds: float
    cores: float


class ThreadChoice:
    """Chooses between all threads of a process and one, by timing steps that the run does anyway.

    It times both when it starts, when the rate has halved since, when other work has left the
    process's core, and from time to time. most: all threads, at least 2. wall, cpu: seconds on a
    clock, and seconds that the process has spent on all cores together.
    """

    def __init__(
        self,
        most: int,
        wall: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self.most, self._wall, self._cpu = most, wall, cpu
        self._chosen, self._usual = most, Step(math.inf, math.inf)
        self._recent: deque[Step] = deque(maxlen=RECENT)
        self._begin_timing()

    @property
    def num_threads(self) -> int:
        """Threads of the next step."""
        if not self.is_timing:
            return self._chosen
        return self.most if PLAN[len(self._timed)] else 1

    def start(self) -> None:
        """A step starts."""
        self._started = self._wall(), self._cpu()

    def stop(self) -> None:
        """The step that started last ends."""
        now = self._wall()
        seconds = max(now - self._started[0], 1e-9)
        step = Step(seconds, (self._cpu() - self._started[1]) / seconds)
        if self.is_timing:
            self._timed.append(step)
            self._decide(now)
            return
        self._recent.append(step)
        if self._is_due(now):
            self._begin_timing()

    def _is_due(self, now: float) -> bool:
        """Whether both numbers are to be timed again."""
        if len(self._recent) < RECENT or now < self._soonest:
            return False
        recent = _median(self._recent)
        has_halved = recent.seconds > 2 * self._usual.seconds
        is_alone_again = self._usual.cores < SHARED and recent.cores > ALONE
        return has_halved or (self._chosen == 1 and is_alone_again) or now >= self._again

    def _begin_timing(self) -> None:
        self.is_timing = True
        self._began = self._wall()
        self._timed: list[Step] = []
        if self._recent:
            self._usual = _median(self._recent)

    def _decide(self, now: float) -> None:
        """Ends the timing where its steps are enough to choose."""
        timed = {self.most: self._counted(True), 1: self._counted(False)}
        count, slowest = len(self._timed), max(step.seconds for step in timed.values())
        if count == 1 and self._chosen == 1:
            # Beside much other work a step with all threads can take as long as many with one.
            timed = {self.most: self._timed[0], 1: self._usual}
            is_enough = self._timed[0].seconds > CLEAR * self._usual.seconds
        elif count == 2:
            is_enough = timed[self.most].cores >= BUSY_CORES
        else:
            fastest = min(step.seconds for step in timed.values())
            is_clear = count == PLAN.index(False) + 2 and slowest > CLEAR * fastest
            is_enough = is_clear or count == len(PLAN)
        if is_enough:
            self._choose(timed, now)

    def _counted(self, with_all: bool) -> Step:
        """The median of the steps with all threads or with one, without those that warm up."""
        return _median(
            [s for i, s in enumerate(self._timed) if PLAN[i] == with_all and i not in WARM_UP]
        )

    def _choose(self, timed: Mapping[int, Step], now: float) -> None:
        other = 1 if self._chosen == self.most else self.most
        if timed[other].seconds * GAIN < timed[self._chosen].seconds:
            self._chosen = other
            log.info("%s", self._change(timed))
        self._usual, self.is_timing = timed[self._chosen], False
        self._recent.clear()
        lost = max(0.0, now - self._began - len(self._timed) * self._usual.seconds)
        self._soonest = now + SOONEST_TIMES * lost
        self._again = now + max(AGAIN_SECONDS, AGAIN_TIMES * lost)

    def _change(self, timed: Mapping[int, Step]) -> str:
        """What is chosen, with the rates, and with the reason where it is seen."""
        other = 1 if self._chosen == self.most else self.most
        said = f"{_threads(self._chosen)}: {1 / timed[self._chosen].seconds:.3g} steps/s"
        if math.isfinite(timed[other].seconds):
            said += f" against {1 / timed[other].seconds:.3g} with {other}"
        is_shared = self._chosen == 1 and timed[1].cores < SHARED
        return said + ("; other work keeps the cores busy" if is_shared else "")

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


def _median(steps: Collection[Step]) -> Step:
    """Of each number on its own; a step without end where there is none."""
    if not steps:
        return Step(math.inf, 0.0)
    return Step(median(step.seconds for step in steps), median(step.cores for step in steps))


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
