"""The choice between all threads and one, on a clock of its own: no test depends on real speed."""

import logging
from dataclasses import dataclass, field

import pytest
import torch

from sidepipe.engine import threads
from sidepipe.engine.stage import Runtime
from sidepipe.engine.threads import PLAN, ThreadChoice, of_control_groups, of_slurm


@dataclass
class Machine:
    """Takes `seconds` per step, by number of threads, which keep `cores` of it busy."""

    seconds: dict[int, float]
    cores: dict[int, float] = field(default_factory=dict)
    now: float = 100.0
    cpu: float = 5.0

    def choice(self, most=2):
        return ThreadChoice(most, wall=lambda: self.now, cpu=lambda: self.cpu)

    def run(self, choice, steps=1):
        """The numbers of threads that the steps take."""
        taken = []
        for _ in range(steps):
            taken.append(choice.num_threads)
            choice.start()
            seconds = self.seconds[taken[-1]]
            self.now += seconds
            self.cpu += seconds * self.cores.get(taken[-1], 1.0)
            choice.stop()
        return taken


def idle(most=2):
    return Machine({most: 0.05, 1: 0.09}, {most: 1.7, 1: 1.0})


def busy(most=2):
    """The issue's training beside two others: 2.3 steps/s with two threads, 8.9 with one."""
    return Machine({most: 1 / 2.3, 1: 1 / 8.9}, {most: 0.4, 1: 0.7})


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="sidepipe.engine.threads")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("machine", "number"), [(idle(), 2), (busy(), 1)])
def test_the_faster_number_is_kept(machine, number):
    choice = machine.choice()
    machine.run(choice, len(PLAN))
    assert machine.run(choice, 100) == [number] * 100


def test_a_timing_takes_eight_steps_and_ends_after_four_where_it_is_clear():
    machine = idle()
    assert machine.run(machine.choice(), 10) == [2, 2, 1, 1, 2, 1, 2, 1, 2, 2]
    machine = busy()
    assert machine.run(machine.choice(), 10) == [2, 2, 1, 1, 1, 1, 1, 1, 1, 1]


def test_a_change_is_logged_once_with_its_rates_and_its_reason(said):
    machine = busy()
    machine.run(machine.choice(), 100)
    assert said() == ["1 thread: 8.9 steps/s against 2.3 with 2; other work keeps the cores busy"]


def test_all_threads_are_no_change_and_a_small_network_is_no_busy_machine(said):
    machine = idle()
    machine.run(machine.choice(), 100)
    assert said() == []
    small = Machine({2: 0.02, 1: 0.01}, {2: 1.5, 1: 1.0})
    small.run(small.choice(), 100)
    assert said() == ["1 thread: 100 steps/s against 50 with 2"]


def test_steps_that_warm_up_do_not_count():
    machine = idle()
    choice = machine.choice()
    for i, seconds in enumerate([50.0, 0.05, 50.0, 0.09, 0.05, 0.09, 0.05, 0.09]):
        machine.seconds = dict.fromkeys((1, 2), seconds)
        assert machine.run(choice) == [2 if PLAN[i] else 1]
    assert choice.num_threads == 2


def test_one_stalled_step_decides_nothing():
    machine = Machine({2: 0.2, 1: 0.1})
    choice = machine.choice()
    machine.run(choice, 4)
    machine.seconds[1] = 30.0
    machine.run(choice, 2)
    machine.seconds[1] = 0.1
    machine.run(choice, 2)
    assert choice.num_threads == 1


def test_it_times_again_when_the_rate_halves_and_goes_on_with_the_faster(said):
    machine = idle()
    choice = machine.choice()
    machine.run(choice, 30)
    machine.seconds, machine.cores = busy().seconds, busy().cores
    machine.now += 10.0
    assert machine.run(choice, 40) == [2] * 3 + [2, 2] + [1] * 35
    assert len(said()) == 1


def test_it_does_not_time_again_for_a_rate_that_falls_by_less_nor_for_single_slow_steps():
    machine = idle()
    choice = machine.choice()
    machine.run(choice, 30)
    for seconds in [0.09, 0.09, 5.0, 0.05, 0.09, 5.0, 0.09] * 3:
        machine.seconds[2] = seconds
        assert machine.run(choice) == [2]
        assert not choice.is_timing


def test_a_rate_that_stays_low_is_timed_once():
    """Both numbers slow down alike: the rate since is the usual one."""
    machine = idle()
    choice = machine.choice()
    machine.run(choice, 20)
    machine.now += 10.0
    machine.seconds = {2: 0.5, 1: 0.9}
    machine.run(choice, 5 + len(PLAN))
    assert machine.run(choice, 100) == [2] * 100


def test_beside_much_other_work_looking_again_costs_one_step(said):
    """A step of two threads takes as long as 14 of one, as measured at load 10."""
    machine = Machine({2: 1 / 0.185, 1: 1 / 2.64}, {2: 0.1, 1: 0.2})
    choice = machine.choice()
    assert machine.run(choice, 5000).count(2) <= 2 + 5000 / 2.64 / (100 * 5)
    machine.seconds[1] = 1.0
    machine.now += 200.0
    taken = machine.run(choice, 100)
    assert taken.count(2) == 1
    assert len(said()) == 1


def test_it_finds_out_that_other_work_has_ended_and_says_so(said):
    machine = busy()
    choice = machine.choice()
    machine.run(choice, 20)
    machine.now += 20.0
    machine.seconds, machine.cores = idle().seconds, idle().cores
    taken = machine.run(choice, 20)
    assert taken == [1] * 3 + [2, 2, 1, 1, 2, 1, 2, 1] + [2] * 9
    assert said()[1:] == ["2 threads: 20 steps/s against 11.1 with 1"]


def test_it_looks_again_from_time_to_time_whatever_its_core_shows():
    machine = Machine({2: 0.2, 1: 0.1}, {2: 1.0, 1: 0.99})
    choice = machine.choice()
    machine.run(choice, 20)
    machine.seconds[2] = 0.05
    assert machine.run(choice, 500) == [1] * 500
    assert machine.run(choice, 500)[-1] == 2


@pytest.mark.parametrize("machine", [idle(), busy(), Machine({2: 20.0, 1: 30.0})])
def test_all_timings_together_cost_less_than_a_hundredth(machine):
    choice = machine.choice()
    machine.run(choice, 20)
    best, start, steps = machine.seconds[choice.num_threads], machine.now, 20_000
    machine.run(choice, steps)
    assert best * steps < machine.now - start < 1.01 * best * steps


@pytest.mark.parametrize("first", [idle(), busy()])
def test_numbers_that_are_nearly_as_fast_never_alternate(first, said):
    machine = first
    choice = machine.choice()
    machine.run(choice, 20)
    number, before = choice.num_threads, said()
    for i in range(3000):
        noise = 0.004 * (i % 3 - 1)
        machine.seconds = {number: 0.10 + noise, 3 - number: 0.095 - noise}
        machine.run(choice)
    assert said() == before


def test_where_all_threads_keep_two_cores_busy_one_thread_is_not_tried():
    """With 64 threads a step of one can take as long as a whole stage."""
    machine = Machine({64: 0.1, 1: 4.0}, {64: 30.0, 1: 1.0})
    assert machine.run(machine.choice(most=64), 50) == [64] * 50
    crowded = Machine({64: 4.0, 1: 1.0}, {64: 1.5, 1: 1.0})
    choice = crowded.choice(most=64)
    crowded.run(choice, len(PLAN))
    assert choice.num_threads == 1


def test_one_thread_ends_at_once_where_all_threads_keep_the_cores_busy_again(said):
    machine = busy(most=64)
    choice = machine.choice(most=64)
    machine.run(choice, 20)
    machine.seconds, machine.cores = {64: 0.01, 1: 0.2}, {64: 30.0, 1: 1.0}
    taken = machine.run(choice, 3000)
    assert taken[-1] == 64
    assert said()[1:] == ["64 threads: 100 steps/s"]


def test_a_step_that_is_compiled_is_repeated_until_the_number_is_chosen():
    before, numbers = torch.get_num_threads(), []
    choice = ThreadChoice(2)
    try:
        choice.settle(lambda: numbers.append(torch.get_num_threads()))
    finally:
        torch.set_num_threads(before)
    assert numbers == [2 if every else 1 for every in PLAN]
    assert not choice.is_timing
    choice.settle(lambda: pytest.fail("it is chosen"))


# How many there are


@pytest.mark.parametrize(
    ("variables", "limits"),
    [
        ({}, []),
        ({"SLURM_CPUS_PER_TASK": "4", "SLURM_CPUS_ON_NODE": "64"}, [4]),
        ({"SLURM_CPUS_ON_NODE": "6"}, [6]),
        ({"SLURM_CPUS_ON_NODE": "6", "SLURM_STEP_TASKS_PER_NODE": "4"}, [1]),
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}, [4]),
    ],
)
def test_a_slurm_task_uses_the_cpus_that_it_asked_for(variables, limits, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert list(of_slurm(variables)) == limits


@pytest.mark.parametrize(
    ("files", "group", "limits"),
    [
        ({"cpu.max": "250000 100000\n"}, "0::/\n", [3]),
        ({"cpu.max": "max 100000\n"}, "0::/\n", []),
        ({"cpu.max": "50000 100000\n"}, "0::/\n", [1]),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b\n", [4]),
        ({"a/cpu.max": "400000 100000", "a/b/cpu.max": "200000 100000"}, "0::/a/b\n", [2, 4]),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "1:cpu:/\n", []),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/\n", [2]),
        ({}, None, []),
    ],
)
def test_a_container_uses_the_cores_of_its_quota(tmp_path, files, group, limits):
    root, own = tmp_path / "cgroup", tmp_path / "own"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    if group is not None:
        own.write_text(group)
    assert sorted(of_control_groups(root, own)) == limits


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(threads, "available", lambda: 8)


def test_spawned_processes_share_the_cores_and_a_given_number_is_of_each(eight_cores):
    assert Runtime().most_threads() == 8
    assert Runtime().most_threads(processes=3) == 2
    assert Runtime().most_threads(processes=16) == 1
    assert Runtime(num_threads=5).most_threads(processes=3) == 5


@pytest.mark.parametrize("number", [0, -2])
def test_no_threads_are_refused(number):
    message = rf"runtime.num_threads must be auto or a whole number >= 1, got {number}"
    with pytest.raises(ValueError, match=message):
        Runtime(num_threads=number)
