"""What somebody who reads a client's messages has of one of its updates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedstill.bundle import Bundle, Group
from fedstill.data.shard import Shard
from fedstill.errors import InputError
from fedstill.privacy import Privacy
from fedstill.rounds import Desk, Trained
from fedstill.seeds import Seed
from fedstill.train import Recipe, fit

__all__ = ["Seen", "seen", "update_of"]


@dataclass(frozen=True)
class Seen:
    """What an attacker has of one client's message.

    Attributes:
        received: the network that the client was sent.
        change: by how much the message moves each of its parameters, on the CPU, in any unit.
    """

    received: Trained
    change: Group


def seen(received: Trained, reply: Bundle) -> Seen:
    """What a reply tells: weights after training (group ``model``), or a gradient (group ``gradient``).

    Raises:
        InputError: the reply holds neither, or the network that was sent is not whole.
    """
    network = received.architecture.build(Seed(("unused",)))
    whole, names = network.state_dict(), [name for name, _ in network.named_parameters()]
    shapes = {name: tensor.shape for name, tensor in received.tensors.items()}
    if missing := [name for name, tensor in whole.items() if shapes.get(name) != tensor.shape]:
        raise InputError(
            f"attack on an update: the network that was sent is not the run's whole one, as to its {missing[0]}, so nothing can "
            "be retraced"
        )
    if gradient := reply.groups.get("gradient"):
        return Seen(received, {name: -gradient[name].detach().cpu() for name in names if name in gradient})
    after, before = reply.groups.get("model", {}), received.tensors
    change = {name: (after[name] - before[name]).detach().cpu() for name in names if name in after}
    if not change:
        raise InputError(
            "attack on an update: the reply holds neither a network nor a gradient, so there is no update to invert"
        )
    return Seen(received, change)


def update_of(
    received: Trained,
    shard: Shard,
    recipe: Recipe,
    *,
    privacy: Privacy | None = None,
    leaves: Callable[[Bundle], Bundle] = lambda reply: reply,
    desk: Desk,
) -> Seen:
    """What a client that holds ``shard`` alone would send: what an audit that re-runs a client attacks.

    Args:
        privacy: how the client protects its gradients; None: it does not.
        leaves: what becomes of its reply on the way.

    Raises:
        Diverged: its training diverged.
        MissingExtra: the package that differential privacy needs is not installed.
    """
    fitted = fit(received.module(), shard, recipe, seed=desk.seed, device=desk.device, privacy=privacy)
    return seen(received, leaves(Bundle().put(model={name: tensor.cpu() for name, tensor in fitted.tensors.items()})))
