"""Who answers the server at a site: looks at the message, does the work or not, looks at the answer, writes both down.

What the server is told of a refusal or a failure is a sentence of this module or of the policy; what an exception says, which may
name the site's files, stays in the site's own log.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from fedstill.algorithms import ALGORITHMS
from fedstill.algorithms.updates import uncovered
from fedstill.algorithms.virtual import OnVirtual
from fedstill.bundle import Bundle
from fedstill.deployment.checks import clock_problem, load_and_check, place_problems, version_problem
from fedstill.deployment.federation import Federation, code_named, form, identity, restored
from fedstill.deployment.ledger import Direction, Entry, now, record
from fedstill.deployment.messages import Facts, facts
from fedstill.deployment.policy import SUM_SENDS, against_reply, against_task
from fedstill.deployment.privacy import SPENT, privatised, spend, unmoved
from fedstill.deployment.site import SiteSettings, as_site
from fedstill.deployment.summing import Summing
from fedstill.engines.client import LOCAL, MASKED, SCORE, SUM, Done, Work, client_desk, done, memory_before
from fedstill.engines.flower.calls import Call, Readiness
from fedstill.engines.memory import Memory
from fedstill.errors import Diverged, FedstillError, InputError, RunError, printable
from fedstill.evaluate.scoring import has_own_images
from fedstill.files import private_folder
from fedstill.folder import SCRATCH, remove
from fedstill.generators import PRIORS
from fedstill.generators.files import prior_hash
from fedstill.rounds import Algorithm, Desk, Failure, Reply, Site
from fedstill.runtime import pick_device, prepared
from fedstill.seeds import Seed

__all__ = ["RUNS", "SiteAttendant"]

RUNS = "runs"
"""Where the site's folder has what it keeps of each run."""

MEMORIES = 3
"""Versions of a memory: the server may be gone on with from the round before its last."""

_NOT_READY = "the site is not ready; its administrator can see why"
_UNWRITTEN = "the site cannot write the message down, so it is not worked on"


@dataclass(frozen=True)
class _Prepared:
    """What a run's work needs, made of its settings and the site's images once."""

    identity: str
    algorithm: Algorithm
    site: Site
    desk: Desk
    threads: int


class _New(NamedTuple):
    """What a site is to remember of a round."""

    memory: Memory
    round: int
    bundle: Bundle


@dataclass
class SiteAttendant:
    """See the module; an :class:`~fedstill.engines.flower.calls.Attendant`.

    Attributes:
        settings: the site's.
        note: hears what the site's administrator should.
    """

    settings: SiteSettings
    note: Callable[[str], None]
    _held: _Prepared | None = field(default=None, init=False, repr=False)
    _new: _New | None = field(default=None, init=False, repr=False)
    _summing: Summing = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._summing = Summing(self.settings.name)

    def ready(self, call: Call) -> Readiness:
        """Whether the site can take part in the run; it reads its images for that."""
        empty = facts(Bundle())
        if (problem := self._stranger(call) or self._clock(call)) is None:
            try:
                # the policy before the work: what could not leave is not even loaded
                federation = self._told(call)
                problem = against_task(
                    self.settings.policy,
                    empty,
                    MASKED if call.secure else LOCAL,
                    experiment=identity(call.settings),
                    sends={word for words in SUM_SENDS.values() for word in words} if call.secure else federation.sends,
                )
                own = problem is None and has_own_images(self._prepare(call).site)
                scored = own and not self._private  # scores are counts of images, which noise on a model does not cover
            except FedstillError as error:
                self.note(f"not ready for '{printable(call.experiment)}': {error}")
                problem, scored = _NOT_READY, False
        else:
            scored = False
        try:
            self._write(call, empty, "in", problem)
            self._write(call, empty, "out", None)
        except FedstillError as error:
            self.note(str(error))
            return Readiness(_UNWRITTEN)
        if problem is None:
            self.note(f"ready for '{printable(call.experiment)}'")
        elif problem != _NOT_READY:
            self.note(f"not ready for '{printable(call.experiment)}': {problem}")
        return Readiness(problem, scored)

    def work(self, call: Call, inbox: Bundle) -> Bundle | str:
        """The work done, its answer looked at and written down."""
        self._new = None
        where = f"'{printable(call.experiment)}', round {call.round}, {printable(call.task)}"
        try:
            arrived = facts(inbox)
            refused = self._stranger(call) or self._against(call, arrived)
            self._write(call, arrived, "in", refused)
            if refused is None:
                outcome = self._summed(call, inbox) if call.task in SUM else self._work(call, inbox)
                leaving = facts(Bundle() if isinstance(outcome, str) else outcome)
                refused = outcome if isinstance(outcome, str) else against_reply(self.settings.policy, leaving)
                self._write(call, leaving, "out", refused)
                if not isinstance(outcome, str) and refused is None:
                    self._remember()
                    self.note(f"{where}: done")
                    return outcome
        except FedstillError as error:
            # the ledger cannot be written, so nothing leaves
            self.note(f"{where}: {error}")
            return _UNWRITTEN
        self.note(f"{where}: {refused}")
        assert refused is not None
        return refused

    def unread(self, why: str, told: str) -> None:
        """See :class:`~fedstill.engines.flower.calls.Attendant`."""
        self.note(f"a message was not read: {why}")
        nothing = facts(Bundle())
        try:
            for way in ("in", "out"):
                record(
                    self.settings.ledger,
                    Entry(time=now(), run="", round=0, task="unread", direction=way, facts=nothing, refused=told),
                )
        except FedstillError as error:
            self.note(str(error))

    def _stranger(self, call: Call) -> str | None:
        """Why a message is not for this site."""
        if call.task == SCORE and self._private:
            return "the site's privacy covers model weights alone, so it does not score"
        if call.client != self.settings.name:
            return f"the site's key is that of '{printable(call.client)}' at the server, and the site has another name"
        return version_problem(call.version)

    def _clock(self, call: Call) -> str | None:
        return None if call.time is None else clock_problem(call.time, time.time())

    def _against(self, call: Call, arrived: Facts) -> str | None:
        try:
            sends = self._told(call).sends
        except InputError as error:
            self.note(str(error))
            return "the run's settings cannot be read"
        return against_task(
            self.settings.policy,
            arrived,
            call.task,
            experiment=identity(call.settings),
            sends=SUM_SENDS.get(call.task, sends),
        )

    def _told(self, call: Call) -> Federation:
        """What the run asks of the site, of which nothing was loaded yet."""
        if not self.settings.policy.experiments and (foreign := code_named(call.settings)) is not None:
            raise InputError(
                f"the experiment names '{printable(foreign)}', code that is not fedstill's: name the experiment "
                f"({identity(call.settings)}) in policy.experiments if the site is to run what is installed under that name"
            )
        experiment = restored(call.settings, self._priors)
        if self._private and experiment.update is not None and experiment.update.bits is not None:
            raise InputError(
                f"the experiment has update.bits = {experiment.update.bits}, and the site's privacy covers whole model weights "
                "alone"
            )
        method = experiment.algorithm
        known = ALGORITHMS.get(method.name)
        # before any work: afterwards one that diverged could be told from one whose answer may not leave
        if self._private and known is not None and (why := uncovered(known.sends, method.options)):
            raise InputError(
                f"the site's privacy covers model weights alone, and of '{method.name}' it is known that {why}"
            )
        return Federation.of(experiment)

    def _summed(self, call: Call, inbox: Bundle) -> Bundle | str:
        """The site's part in a secure sum; its work is that of ``local``, to the bit."""
        folder = Path(self.settings.folder) / RUNS / call.run
        return self._summing.answer(
            call, inbox, folder, lambda call, inbox: self._work(replace(call, task=LOCAL), inbox)
        )

    def _work(self, call: Call, inbox: Bundle) -> Bundle | str:
        """The task's answer, or what the server is told of its failure. What is to be remembered waits for its leaving."""
        try:
            if problems := place_problems(self.settings):
                raise RunError(problems[0])
            held = self._prepare(call)
            folder = self._place(call)
            memory = Memory(folder / "memory", kept=MEMORIES)
            before = _remembered(memory, self.settings.name, memory_before(call.round, call.task))
            desk = client_desk(
                Desk(held.desk.seed, device=held.desk.device, scratch=folder / SCRATCH),
                call.round,
                self.settings.name,
                call.task,
            )
            with prepared(held.threads):
                outcome = self._done(held, call.task, Work(self.settings.name, held.site, inbox, before, desk))
            if isinstance(outcome.answer, Failure):
                return outcome.answer.reason
            answer = outcome.answer.bundle
            if self._private:
                answer = privatised(inbox, answer, self.settings.privacy)
                spend(Path(self.settings.folder) / SPENT, self.settings.privacy.answers)
            if outcome.memory is not None:
                self._new = _New(memory, call.round, outcome.memory)
            return answer
        except Diverged as error:
            self.note(str(error))
            if not self._private:
                return "training diverged"
        except FedstillError as error:
            self.note(str(error))
        except Exception:
            self.note(traceback.format_exc())
        return "the site's work failed; its administrator can see why"

    def _done(self, held: _Prepared, task: str, work: Work) -> Done:
        """The task done. Whether training diverged is a bit about the images, whatever the noise, and a server can choose weights
        at which one of them decides it. So where there is noise such a training has changed nothing: what leaves is that, noised
        and counted as any other.

        Raises:
            Diverged: there is no noise, or the answer would have told the number of virtual images, which is not known here.
        """
        try:
            return done(held.algorithm, task, work)
        except Diverged as error:
            if not self._private or isinstance(held.algorithm, OnVirtual):
                raise
            self.note(str(error))
            return Done(Reply(work.client, unmoved(work.inbox, len(work.site.train))), None)

    def _prepare(self, call: Call) -> _Prepared:
        """The images are read once for a run; another run's take their place.

        Raises:
            InputError: the site is not ready for it; the first problem, and all are noted.
        """
        known = identity(call.settings)
        if self._held is not None and self._held.identity == known:
            return self._held
        self._held = None  # the memory first
        experiment = restored(call.settings, self._priors)
        federation = Federation.of(experiment)
        channels, size, normalisation = form(experiment)
        root = Seed.root(experiment.seed)
        checked, loaded = load_and_check(self.settings, federation, root.at("data"))
        if checked.problems or loaded is None:
            for problem in checked.problems[1:]:
                self.note(problem)
            raise InputError(checked.problems[0] if checked.problems else "its images cannot be read")
        world = experiment.world(federation.classes, normalisation, channels=channels, size=size)
        self._held = _Prepared(
            identity=known,
            algorithm=experiment.algorithm.build(world, experiment.virtual, experiment.update),
            site=as_site(
                self.settings,
                loaded,
                classes=federation.classes,
                normalisation=normalisation,
                seed=root.at("validation").at(self.settings.name),
            ),
            desk=Desk(root.at("run"), device=pick_device(self.settings.device)),
            threads=experiment.threads,
        )
        return self._held

    def _remember(self) -> None:
        """What came of the work is remembered once its answer may leave: an answer that does not is none to build on."""
        if self._new is not None:
            self._new.memory.write(self.settings.name, self._new.round, self._new.bundle)
            self._new = None

    def _place(self, call: Call) -> Path:
        """The run's folder. What another run left to be worked on further, which can be gigabytes, is removed."""
        runs = Path(self.settings.folder) / RUNS
        folder = runs / call.run
        private_folder(folder)
        for other in runs.glob(f"*/{SCRATCH}"):
            if other.parent != folder:
                remove(other)
        return folder

    @property
    def _private(self) -> bool:
        return self.settings.privacy.clip is not None

    @cached_property
    def _priors(self) -> Mapping[str, str]:
        """By content, read once: those that fedstill brings and those that the site has."""
        return {prior_hash(each): each for each in (*PRIORS, *self.settings.priors)}

    def _write(self, call: Call, message: Facts, way: Direction, refused: str | None) -> None:
        entry = Entry(
            time=now(),
            run=call.experiment,
            round=call.round,
            task=call.task,
            direction=way,
            facts=message,
            refused=refused,
        )
        record(self.settings.ledger, entry)


def _remembered(memory: Memory, client: str, before: int) -> Bundle:
    """The newest version below round ``before``.

    Raises:
        RunError: there was one, and it was overwritten: the server has gone back farther than the site remembers.
    """
    versions = memory.versions(client)
    if len(versions) == MEMORIES and versions[0] >= before:
        raise RunError(
            f"the server asks for a round below {before}, and the site remembers rounds from {versions[0]} on alone"
        )
    return memory.read(client, before)
