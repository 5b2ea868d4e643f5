"""The Lightning callback of `threads`: sets the CPU threads of each process."""

from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from sidepipe.engine.stage import Runtime
from sidepipe.engine.threads import ThreadChoice


class Threads(Callback):
    """Sets the CPU threads of a process; on a CPU with "auto", before every training step.

    In prediction, whose steps are within a batch, the module gets the attribute `thread_choice`.
    At its end the process has all its threads again.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.most = runtime.most_threads(runtime.devices if runtime.spawns else 1)
        self.is_auto = runtime.num_threads == "auto"
        self.choice: ThreadChoice | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        torch.set_num_threads(self.most)  # Lightning sets another number for several processes
        if self.is_auto and trainer.strategy.root_device.type == "cpu":
            most = self._most_of_all() if stage == "fit" and trainer.world_size > 1 else self.most
            self.choice = ThreadChoice(most) if most > 1 else None
        if stage == "predict":
            pl_module.thread_choice = self.choice

    def _most_of_all(self) -> int:
        """The smallest number of threads of a process: all processes choose, or none does."""
        most = torch.tensor(self.most)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MIN)
        return int(most)

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if self.choice is None:
            return
        most = self.choice.most
        takes_all = torch.tensor(self.choice.num_threads == most)
        if trainer.world_size > 1:  # they wait for each other, so the first one decides
            torch.distributed.broadcast(takes_all, src=0)
        torch.set_num_threads(most if takes_all else 1)
        self.choice.start()

    def on_train_batch_end(self, *args: Any) -> None:
        if self.choice is not None:
            self.choice.stop()

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        torch.set_num_threads(self.most)

    def on_exception(self, *args: Any) -> None:
        torch.set_num_threads(self.most)
