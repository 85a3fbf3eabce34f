"""A session's parameters, gradients and optimizer state, each in one tensor.

The model's parameters and the state of the session's own optimizer become views of these tensors,
so that checkpoints, evaluation and schedule see what they always see, while a step of the optimizer
is one call on one parameter instead of one on each.
"""

import torch
from torch import Tensor, nn

from ..session import Session, build_optimizer


class FlatParameters:
    """Joins the parameters of a session on the CPU; they keep their values.

    Restore a checkpoint before: loading the state of the session's optimizer afterwards would
    replace its views.

    Attributes:
        values, gradient: [P], in the order of the model's parameters.
    """

    def __init__(self, session: Session) -> None:
        self._own = session.optimizer
        parameters = list(session.model.parameters())
        self._sizes = [p.numel() for p in parameters]
        self.values = nn.Parameter(_joined([p.detach() for p in parameters]))
        self.gradient = self.values.grad = torch.zeros_like(self.values)
        for p, value, gradient in zip(
            parameters, self._parts(self.values), self._parts(self.gradient), strict=True
        ):
            p.data, p.grad = value.view_as(p), gradient.view_as(p)
        self._optimizer = build_optimizer([self.values], session.experiment)
        self._join_state(parameters)

    def _parts(self, joined: Tensor) -> tuple[Tensor, ...]:
        return torch.split(joined.detach(), self._sizes)

    def _join_state(self, parameters: list[nn.Parameter]) -> None:
        """Take over the optimizer's state; a scalar, the number of steps, is that of all."""
        flat = self._optimizer.state[self.values]
        for name, value in flat.items():
            states = [self._own.state[p][name] for p in parameters]
            if value.dim():
                value.copy_(_joined(states))
                for p, part in zip(parameters, self._parts(value), strict=True):
                    self._own.state[p][name] = part.view_as(p)
            else:
                value.copy_(states[0])
                for p in parameters:
                    self._own.state[p][name] = value

    def step(self) -> None:
        """One step of the optimizer, with the settings of the session's own."""
        (own,), (flat,) = self._own.param_groups, self._optimizer.param_groups
        flat.update({name: value for name, value in own.items() if name != "params"})
        self._optimizer.step()


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
