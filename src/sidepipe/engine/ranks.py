"""The processes of one srun step: the first, the leader, directs the others.

`srun` starts all of them with the same command. Only the leader plans, locks, runs stages and
writes manifests. All processes run the functions that train and sample; the others wait in between.
Stages therefore contain no code for several processes. Without srun, or in a step of one task,
there is only the leader.
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

# Variables of another job or a shell, which Lightning would read.
_LEFT_BY_OTHERS = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
_WORK = "work"
# The leader may cluster, sample or wait for a lock for as long as a job lasts.
_FOR_EVER = timedelta(days=365)
_TO_MEET, _TO_LEAVE = timedelta(minutes=10), 10.0
_PIECE = 2**30  # bytes per message, below the limits of gloo

# The store through which the leader sends messages, and their number so far. The runs of a multirun
# share both.
_store: Any = None
_messages = 0


def several() -> bool:
    """Whether this process belongs to an srun step of several processes.

    A batch script without srun is one process, however many tasks its job has.
    """
    return _num_tasks() > 1


def num_nodes() -> int:
    """Nodes of the step."""
    return int(_step("NUM_NODES", "1"))


def tasks_per_node() -> int:
    """Processes of the step on each of its nodes; ValueError where nodes differ."""
    tasks = _step("TASKS_PER_NODE", "1")
    match = re.fullmatch(r"(\d+)(?:\(x\d+\))?", tasks)
    remedy = "srun --ntasks-per-node=..."
    require(match is not None, "tasks per node", "the same on every node", tasks, remedy)
    assert match is not None
    return int(match[1])


def _num_tasks() -> int:
    return int(_step("NUM_TASKS", "1"))


def _step(name: str, default: str) -> str:
    return os.environ.get(f"SLURM_STEP_{name}", default)


def _rank() -> int:
    # Not SLURM_PROCID: unlike Lightning's rank, it alternates nodes with --distribution=cyclic.
    node, task = int(os.environ["SLURM_NODEID"]), int(os.environ["SLURM_LOCALID"])
    return node * tasks_per_node() + task


@contextmanager
def leading() -> Iterator[bool]:
    """True in the leader; False in the other processes, after the leader has ended.

    Signals raise Preempted in the leader. All processes end with its exit code.
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
        code = error.code if isinstance(error, SystemExit) else 1
        code = code if isinstance(code, int) else 1
        if several():
            import torch.distributed as dist

            if dist.is_initialized():
                _end_at_once(error, code)
        _dismiss(code)
        raise
    _dismiss(0)


def _end_at_once(error: BaseException, code: int) -> None:
    """Ends after an error of shared work, without waiting for threads of its process group.

    The other processes are still in that work and fail when this one ends.
    """
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _meet() -> None:
    """Connects the processes of the step, and sets the ranks that Lightning reads."""
    global _store
    os.environ["RANK"] = str(_rank())
    os.environ["NODE_RANK"] = os.environ["SLURM_NODEID"]
    os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
    if _store is not None:
        return
    import torch.distributed as dist

    host = re.sub(r"\[(\w+)[^]]*\]", r"\1", _step("NODELIST", "")).split(",")[0]
    # Jobs that run together have close numbers, and rarely a second step.
    job, step = int(os.environ["SLURM_JOB_ID"]), int(_step("ID", "0"))
    port = 15000 + (job + 101 * step) % 10000
    _store = dist.TCPStore(host, port, _num_tasks(), _rank() == 0, _TO_MEET)
    _store.set_timeout(_FOR_EVER)


def _send(message: str) -> str:
    """Sends a message to the other processes; returns its key in the store."""
    global _messages
    key, _messages = f"message {_messages}", _messages + 1
    _store.set(key, message)
    return key


def _dismiss(code: int) -> None:
    """Ends the other processes with exit code `code`; the leader holds the store, so it waits."""
    if not several():
        return
    key, until = _send(str(code)), time.monotonic() + _TO_LEAVE
    while _store.add(f"received {key}", 0) < _num_tasks() - 1:
        if time.monotonic() > until:
            return
        time.sleep(0.01)


def _follow() -> None:
    """Joins the work of the leader until it sends an exit code."""
    global _messages
    interruption.only_set_the_flag()
    while True:
        key, _messages = f"message {_messages}", _messages + 1
        try:
            if (message := _store.get(key).decode()) == _WORK:
                with suppress(Preempted):  # the leader is preempted too, and sends an exit code
                    _take_part(None)
                continue
        except BaseException as error:
            with suppress(RuntimeError):  # where the leader has ended
                fault = f"process {_rank()} of the step: {type(error).__name__}: {error}"
                _store.set("failed", fault)
            _end_at_once(error, 1)
        _store.add(f"received {key}", 1)
        if message != "0":
            sys.exit(int(message))
        return


def together(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs `function(*arguments)` in all processes, and returns the leader's result.

    Only the leader calls this. Function and arguments must be picklable. Raises Preempted after the
    function where a signal stopped it, and RuntimeError, which names the process, where another
    process failed.
    """
    with interruption.deferred():
        if several():
            _send(_WORK)
            return _take_part((function, arguments))
        from torch.multiprocessing import ProcessExitedException

        try:
            return function(*arguments)
        except ProcessExitedException:  # one that Lightning spawned
            if interruption.requested():
                raise Preempted from None
            raise


def _take_part(work: tuple[Callable[..., Any], Sequence[Any]] | None) -> Any:
    """Runs the leader's `work` in this process; raises Preempted in all where one is preempted.

    Each work has its own process group, so that a metric of the leader outside it does not wait for
    processes that do not compute it.
    """
    import torch
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store = dist.PrefixStore(f"work {_messages}", _store)
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
    """The leader's `content`, in every process; arrays are sent without a copy."""
    import torch
    import torch.distributed as dist

    if _rank() == 0:
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(content, protocol=5, buffer_callback=buffers.append)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about read-only memory, which is only read
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
