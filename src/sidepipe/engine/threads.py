"""The number of CPU threads of a process: all, or one where other work occupies the cores.

Threads wait for each other at every operation, so a thread that has lost its core to another
program delays all of them: on a busy machine one thread can be several times as fast as two.
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

# Steps of a timing: True for all threads, False for one. The first of each warms up.
PLAN = (True, True, False, False, True, False, True, False)
WARM_UP = (PLAN.index(True), PLAN.index(False))
# Threads that keep so many cores busy are faster than one.
BUSY_CORES = 2.0
CLEAR = 3.0  # a timing ends early where one number is so many times as fast
GAIN = 1.15  # a number must be so many times as fast to replace the present one
RECENT = 5  # steps whose median shows the present rate
# Busy cores of a process with one thread that has a core alone, or shares it with other work.
ALONE, SHARED = 0.97, 0.9
# The next timing, in multiples of the time that the last timing lost by the slower number.
SOONEST_TIMES, AGAIN_TIMES, AGAIN_SECONDS = 20.0, 100.0, 60.0


@dataclass(frozen=True)
class Step:
    """The duration of a step, and the number of cores that the process kept busy."""

    seconds: float
    cores: float


class ThreadChoice:
    """Chooses between all threads of a process and one, by timing the steps of the run.

    It compares both at the start, when the rate has halved, when other work has left the core of
    the process, and at intervals. most: all threads, at least 2. wall, cpu: clocks of the time and
    of the CPU time of the process.
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
        """Marks the start of a step."""
        self._started = self._wall(), self._cpu()

    def stop(self) -> None:
        """Marks the end of the step that started last."""
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
        """Whether to time both numbers again."""
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
        """Ends the timing when its steps are sufficient to choose."""
        timed = {self.most: self._counted(True), 1: self._counted(False)}
        count, slowest = len(self._timed), max(step.seconds for step in timed.values())
        if count == 1 and self._chosen == 1:
            # Among much other work, one step with all threads can take as long as many with one.
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
        """The choice, with the rates and, where it is visible, the reason."""
        other = 1 if self._chosen == self.most else self.most
        text = f"{_threads(self._chosen)}: {1 / timed[self._chosen].seconds:.3g} steps/s"
        if math.isfinite(timed[other].seconds):
            text += f" against {1 / timed[other].seconds:.3g} with {other}"
        is_shared = self._chosen == 1 and timed[1].cores < SHARED
        return text + ("; other work keeps the cores busy" if is_shared else "")

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
    """The medians of seconds and of cores; infinite seconds without steps."""
    if not steps:
        return Step(math.inf, 0.0)
    return Step(median(step.seconds for step in steps), median(step.cores for step in steps))


@functools.cache
def available() -> int:
    """CPU threads that this process may use, determined at the first call.

    The minimum of torch's default (OMP_NUM_THREADS, or the cores of the process's affinity), the
    CPUs of the Slurm task, and the CPU quota of the control groups, as in a container.
    """
    import torch

    return min([torch.get_num_threads(), *of_slurm(os.environ), *of_control_groups()])


def of_slurm(environment: Mapping[str, str]) -> Iterator[int]:
    """CPUs of a Slurm task, whose affinity is the whole node where it is not bound to cores."""
    if each := environment.get("SLURM_CPUS_PER_TASK"):
        yield int(each)
    elif of_node := environment.get("SLURM_CPUS_ON_NODE"):
        yield max(1, int(of_node) // ranks.tasks_per_node())


def of_control_groups(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[int]:
    """Cores that the CPU quotas of the process's control groups (versions 1 and 2) allow."""
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
