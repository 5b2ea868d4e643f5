"""The processes of one srun step: the first leads, the others do what it tells them.

`srun` starts them all with the same command. The first alone plans, locks, runs stages and writes
manifests; where a stage trains or samples, all run the function that does it, and in between the
others wait. So a stage need not know of them, as it need not of processes that Lightning spawns.
Without srun, or in a step of one task, there is one process, which leads.
"""

import logging
import os
import pickle
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import numpy as np

from sidepipe.base import interruption
from sidepipe.base.interruption import Preempted
from sidepipe.base.settings import require

# Somebody's shell or another job may have left these, and Lightning would believe them.
_LEFT_BY_OTHERS = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
_WORK = "work"
# The first may cluster or wait for a lock for as long as a job lasts, or have more to sample.
_FOR_EVER = timedelta(days=365)
_TO_MEET, _TO_LEAVE = timedelta(minutes=10), 10.0
_PIECE = 2**30  # bytes of one message; gloo's own limits are beyond

# Where the processes meet, and how many words the first has said there; kept from run to run of a
# multirun, whose processes are the same.
_store: Any = None
_words = 0


def several() -> bool:
    """Whether this is a process of an srun step that has several.

    A batch script without srun is one process, however many tasks its job has.
    """
    return _num_tasks() > 1


def num_nodes() -> int:
    """Nodes of the step."""
    return int(_step("NUM_NODES", "1"))


def tasks_per_node() -> int:
    """Processes of the step on each of its nodes; ValueError where nodes differ."""
    said = _step("TASKS_PER_NODE", "1")
    match = re.fullmatch(r"(\d+)(?:\(x\d+\))?", said)
    remedy = "srun --ntasks-per-node=..."
    require(match is not None, "tasks per node", "the same on every node", said, remedy)
    assert match is not None
    return int(match[1])


def _num_tasks() -> int:
    return int(_step("NUM_TASKS", "1"))


def _step(name: str, default: str) -> str:
    return os.environ.get(f"SLURM_STEP_{name}", default)


def _rank() -> int:
    # Not SLURM_PROCID, which with --distribution=cyclic goes round the nodes; Lightning's does not.
    node, task = int(os.environ["SLURM_NODEID"]), int(os.environ["SLURM_LOCALID"])
    return node * tasks_per_node() + task


@contextmanager
def leading() -> Iterator[bool]:
    """True in the process that leads, False in the others, once they need follow no more.

    In the leader signals raise Preempted. How it ends, the others end: with its exit code.
    """
    for name in _LEFT_BY_OTHERS:
        os.environ.pop(name, None)
    if several():
        _meet()
        if _rank() > 0:
            _follow()
            yield False
            return
    try:
        with interruption.handled():
            yield True
    except BaseException as error:
        said = error.code if isinstance(error, SystemExit) else 1
        code = said if isinstance(said, int) else 1
        if several():
            import torch.distributed as dist

            if dist.is_initialized():
                _end_at_once(error, code)
        _dismiss(code)
        raise
    _dismiss(0)


def _end_at_once(error: BaseException, code: int) -> None:
    """Ends after an error of common work: threads of a broken process group may keep or abort us.

    The others are still in that work, and fail as we go.
    """
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _meet() -> None:
    """Joins the step's processes; tells Lightning which this one is."""
    global _store
    os.environ["RANK"] = str(_rank())
    os.environ["NODE_RANK"] = os.environ["SLURM_NODEID"]
    os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
    if _store is not None:
        return
    import torch.distributed as dist

    host = re.sub(r"\[(\w+)[^]]*\]", r"\1", _step("NODELIST", "")).split(",")[0]
    # Jobs at a time have numbers close to each other, and seldom a second step.
    job, step = int(os.environ["SLURM_JOB_ID"]), int(_step("ID", "0"))
    port = 15000 + (job + 101 * step) % 10000
    _store = dist.TCPStore(host, port, _num_tasks(), _rank() == 0, _TO_MEET)
    _store.set_timeout(_FOR_EVER)


def _say(word: str) -> str:
    """Tells the others a word; the key under which they find it."""
    global _words
    key, _words = f"word {_words}", _words + 1
    _store.set(key, word)
    return key


def _dismiss(code: int) -> None:
    """Has the others end with exit code `code`, and waits a little, as the store ends with us."""
    if not several():
        return
    key, until = _say(str(code)), time.monotonic() + _TO_LEAVE
    while _store.add(f"heard {key}", 0) < _num_tasks() - 1:
        if time.monotonic() > until:
            return
        time.sleep(0.01)


def _follow() -> None:
    """Takes part in what the first process says, until it says with which exit code to end."""
    global _words
    interruption.only_set_the_flag()
    while True:
        key, _words = f"word {_words}", _words + 1
        try:
            if (word := _store.get(key).decode()) == _WORK:
                with suppress(Preempted):  # the first process was too, and says what follows
                    _take_part(None)
                continue
        except BaseException as error:
            with suppress(RuntimeError):  # where the first process is gone
                said = f"process {_rank()} of the step: {type(error).__name__}: {error}"
                _store.set("failed", said)
            _end_at_once(error, 1)
        _store.add(f"heard {key}", 1)
        if word != "0":
            sys.exit(int(word))
        return


def together(function: Callable[..., Any], *arguments: Any) -> Any:
    """The leader's `function(*arguments)`, run by all processes; only the leader calls this.

    Both must be picklable. Raises Preempted when they were asked to stop, after the function, and
    RuntimeError naming the process when another one failed.
    """
    with interruption.deferred():
        if several():
            _say(_WORK)
            return _take_part((function, arguments))
        from torch.multiprocessing import ProcessExitedException

        try:
            return function(*arguments)
        except ProcessExitedException:  # one that Lightning spawned
            if interruption.requested():
                raise Preempted from None
            raise


def _take_part(work: tuple[Callable[..., Any], Sequence[Any]] | None) -> Any:
    """Runs the first process's `work` with all others. Preempted, in all, where one was asked.

    A process group of its own for each: outside, the first process is on its own, and a metric
    that gathers over all processes does not wait for those that do not compute it.
    """
    import torch
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = dist.PrefixStore(f"work {_words}", _store)
    dist.init_process_group(backend, store=store, rank=_rank(), world_size=_num_tasks())
    patient = dist.new_group(backend="gloo", timeout=_FOR_EVER)
    try:
        function, arguments, num_threads = _sent(work and (*work, torch.get_num_threads()), patient)
        torch.set_num_threads(num_threads)
        result, stopped = None, torch.zeros((), dtype=torch.int64)
        try:
            result = function(*arguments)
        except Preempted:
            stopped += 1
        dist.all_reduce(stopped, group=patient)
    except Exception as error:
        if _rank() == 0 and _store.check(["failed"]):
            raise RuntimeError(_store.get("failed").decode()) from error
        raise
    dist.destroy_process_group()
    if stopped:
        raise Preempted
    return result


def _sent(content: Any, group: Any) -> Any:
    """The first process's `content`, in every process; arrays go as they are, without a copy."""
    import torch
    import torch.distributed as dist

    if _rank() == 0:
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of memory that is read-only: it is only read
            raw = [np.frombuffer(part, np.uint8) for part in (head, *(b.raw() for b in buffers))]
            parts = [torch.from_numpy(part) for part in raw]
        dist.broadcast_object_list([[len(part) for part in parts]], 0, group)
    else:
        sizes: list[Any] = [None]
        dist.broadcast_object_list(sizes, 0, group)
        parts = [torch.empty(size, dtype=torch.uint8) for size in sizes[0]]
    for part in parts:
        for piece in part.split(_PIECE):
            if len(piece):
                dist.broadcast(piece, 0, group)
    if _rank() == 0:
        return content
    head, *rest = (part.numpy().data for part in parts)
    return pickle.loads(head, buffers=rest)
