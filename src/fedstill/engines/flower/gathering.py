"""Before the first round: every site is asked whether it is ready, when it comes, and again while it is not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

from flwr.app import Message

from fedstill.engines.flower.calls import READY, Readiness, question
from fedstill.engines.flower.post import Pulling, push
from fedstill.engines.flower.superlink import Hosted
from fedstill.errors import RunError, listed

__all__ = ["gathered"]


def gathered(
    hosted: Hosted,
    facts: Mapping[str, str | bool],
    *,
    least: int,
    wait: float | None,
    again: float,
    progress: Callable[[str, int, int], None],
    note: Callable[[str], None],
    pause: float = 0.1,
) -> dict[str, Readiness]:
    """Wait until all sites are ready; or, when time is up, for ``least`` of them.

    Args:
        hosted: the SuperLink.
        facts: of the run, for every message.
        least: sites without which the run does not begin.
        wait: seconds for all of them; None: as long as it takes.
        again: seconds after which a site that was not ready is asked again.
        progress: called at every look: what is done, how much of it, of how much.
        note: hears of sites that are or are not ready.
        pause: seconds between looks.

    Returns:
        The answers of the ready sites, in the order of ``hosted.nodes``.

    Raises:
        RunError: time is up, and fewer are ready.
    """
    ready: dict[str, Readiness] = {}
    pull = Pulling(hosted.grid, pause)
    asked: dict[str, str] = {}  # message → site
    due = dict.fromkeys(hosted.nodes, 0.0)
    told: dict[str, str] = {}
    until = math.inf if wait is None else time.monotonic() + wait
    while len(ready) < len(hosted.nodes):
        progress("waiting for sites", len(ready), len(hosted.nodes))
        now = time.monotonic()
        for site in sorted(hosted.online()):
            if site not in ready and site not in asked.values() and due[site] <= now:
                message = Message(question(facts, site), hosted.nodes[site], READY)
                if (identity := push(hosted.grid, message)) is not None:
                    asked[identity] = site
        for identity, found in pull(asked):
            site = asked.pop(identity)
            if found is None:
                answer = Readiness("its answer cannot be read")
            else:
                answer = Readiness("it went away") if found.has_error() else Readiness.read(found.content)
            if answer.reason is None:
                ready[site] = answer
                note(f"site '{site}' is ready")
                continue
            due[site] = now + again
            if told.get(site) != answer.reason:
                told[site] = answer.reason
                note(f"site '{site}' is not ready: {answer.reason}")
        if now > until:
            if len(ready) >= least:
                break
            missing = listed([site for site in hosted.nodes if site not in ready])
            raise RunError(
                f"{len(ready)} of {len(hosted.nodes)} sites are ready after {wait:g} s, and the quorum is {least}: "
                f"not ready is {missing}"
            )
        time.sleep(pause)
    return {site: ready[site] for site in hosted.nodes if site in ready}
