"""What a run's clients say of their differential privacy, and which of what is attacked it covers.

A method with a budget lets nothing leave a client but what the budget covers, and what the server makes of that is as private
(:mod:`fedstill.privacy`). So every network that an audit attacks is covered, as far as the clients behind it say that they are: a
surrogate by its client's ε up to that round, anything made of all clients by the largest ε of any. Clients share no image.
"""

from __future__ import annotations

import json
from typing import Any

from fedstill.attacked import Target
from fedstill.audit.bounds import Claim
from fedstill.folder import METRICS
from fedstill.output import whole_lines

__all__ = ["claim_of", "claims_of"]


def claims_of(target: Target, until: int) -> dict[str, Claim | None]:
    """By client that took part up to round ``until``: what it last said that it had spent; None where it says nothing."""
    found: dict[str, Claim | None] = {}
    for line in whole_lines(target.run / METRICS):
        row: dict[str, Any] = json.loads(line)
        if row["round"] > until:
            break
        for client in row["clients"]:
            said = client.get("privacy")
            found[client["client"]] = Claim(said["epsilon"], said["delta"]) if said else found.get(client["client"])
    return found


def claim_of(claims: dict[str, Claim | None], client: str | None) -> Claim | None:
    """Of what ``client`` sent, or with None of what is made of all clients' messages; None where that is not covered."""
    concerned = list(claims.values()) if client is None else [claims.get(client)]
    known = [claim for claim in concerned if claim is not None]
    if not known or len(known) < len(concerned):
        return None
    return Claim(max(claim.epsilon for claim in known), max(claim.delta for claim in known))
