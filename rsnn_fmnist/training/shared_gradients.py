"""The gradients of a batch that several processes share.

One sum over the processes a step carries the gradients, weighted by the shares, the batch's
contribution to the run's sums, and the signals received. So a checkpoint of the first process does
not depend on their number.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import RunError, UsageError
from ..interrupt import REASONS, Interrupt
from ..metrics import Sums
from ..session import Session
from ..world import World, peers


class SharedGradients:
    """Called with this process's share of a batch, leaves the whole batch's gradients in .grad.

    Args:
        own_gradients: leaves the gradients of a share in .grad, and adds it to `own`.
        own: sums of this process alone.
        sums: where the whole batch is added.
        interrupt: receives the signals of all processes.
    """

    def __init__(
        self,
        session: Session,
        own_gradients: Callable[[Tensor], None],
        own: Sums,
        sums: Sums,
        interrupt: Interrupt,
    ) -> None:
        self.own_gradients = own_gradients
        self.own = own
        self.sums = sums
        self.interrupt = interrupt
        batch_size = session.experiment.batch_size
        self.weight = len(session.world.share(torch.arange(batch_size))) / batch_size
        self.parameters = {n: p for n, p in session.model.named_parameters() if p.requires_grad}
        sizes = [p.numel() for p in self.parameters.values()]
        dtypes = (p.dtype for p in self.parameters.values())
        dtype = functools.reduce(torch.promote_types, dtypes, torch.float32)
        more = [len(sums.totals), len(REASONS)]
        self.bucket = torch.zeros(sum(sizes + more), dtype=dtype, device=session.device)
        *self.parts, self.added, self.flags = torch.split(self.bucket, sizes + more)
        if self.bucket.is_cuda:
            self._flags_before = torch.zeros(len(REASONS), dtype=dtype, pin_memory=True)
            self._arrived: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def __call__(self, share: Tensor) -> None:
        self.own.reset()
        self.own_gradients(share)
        for part, gradient in zip(self.parts, self._gradients(), strict=True):
            torch.mul(gradient, self.weight, out=part.view_as(gradient))
        self.added.copy_(self.own.totals)
        for index, flag in enumerate(self.interrupt.flags()):
            self.flags[index] = flag
        with peers():
            dist.all_reduce(self.bucket)
        for part, gradient in zip(self.parts, self._gradients(), strict=True):
            gradient.copy_(part.view_as(gradient))
        self.sums.totals += self.added
        self._pass_signals()

    def _gradients(self) -> list[Tensor]:
        """Raises RunError where a parameter has none: the processes could differ in which."""
        found = [p.grad for p in self.parameters.values() if p.grad is not None]
        if len(found) < len(self.parameters):
            name = next(name for name, p in self.parameters.items() if p.grad is None)
            raise RunError(
                f"the model's {name} does not contribute to the scores; with several processes "
                "every parameter must, or have requires_grad off"
            )
        return found

    def _pass_signals(self) -> None:
        """Pass the signals of this step's sum to the interrupt.

        On a GPU those of the step before, which have arrived by now, so that no step waits.
        """
        if not self.flags.is_cuda:
            self.interrupt.agree(self.flags.tolist())
            return
        self._arrived.synchronize()
        self.interrupt.agree(self._flags_before.tolist())
        self._flags_before.copy_(self.flags, non_blocking=True)
        self._arrived.record()


def refuse_unshareable(model: nn.Module, batch_size: int, world: World) -> None:
    """Refuse what several processes cannot compute as one does.

    Raises:
        UsageError: fewer pictures in a batch than processes.
        RunError: a layer that computes statistics of the whole batch.
    """
    if world.size > batch_size:
        raise UsageError(
            f"--batch-size {batch_size}: fewer pictures than the {world.size} processes that share "
            "them"
        )
    for name, layer in model.named_modules():
        of_batch = isinstance(layer, nn.modules.batchnorm._BatchNorm)
        if world.size > 1 and of_batch and not isinstance(layer, nn.SyncBatchNorm):
            raise RunError(
                f"the model's {name} computes statistics of a batch, of which each process has "
                "only a share; train it with one process"
            )
