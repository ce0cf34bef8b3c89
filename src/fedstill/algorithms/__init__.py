"""Federated algorithms: a table of names. Reading it imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

__all__ = ["ALGORITHMS", "Entry"]


@dataclass(frozen=True)
class Entry:
    """One method of the table.

    Attributes:
        title: its name in its paper.
        factory: import string of the algorithm's dataclass.
        summary: one line for ``fedstill list``.
        fixed: fields that make it this method; the user cannot set them.
        distils: whether it leaves synthetic sets in the server's state.
        pooled: all clients' data on one site (a ceiling, not a federated method).
        own_images: why the ``[virtual]`` table does nothing for it; empty where its clients can train on virtual images.
        sends: groups that a client's answer to ``local`` holds, with the method's own defaults; numbers are in all of them.
        may_send: groups that it also holds with some options.
        alone: why its server needs each client's own reply, so that secure aggregation does not go with it; empty where the mean
            of models by images is all that it makes of them.
        no_budget: why it has no privacy budget; empty where it has one, or nothing more is to be said than that there is none.
        lacks: options that other methods have and this one does not, by name, with why; where there is more to say than that.
        renamed: options by the names that files of an older version have for them.
        starter: what ``fedstill init`` writes otherwise than the defaults, by dotted key, because those alone would not do.
    """

    title: str
    factory: str
    summary: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    distils: bool = False
    pooled: bool = False
    own_images: str = ""
    sends: tuple[str, ...] = ("model",)
    may_send: tuple[str, ...] = ()
    alone: str = ""
    no_budget: str = ""
    lacks: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    starter: Mapping[str, Any] = field(default_factory=dict)


ALGORITHMS: Mapping[str, Entry] = MappingProxyType(
    {
        "fedavg": Entry(
            "FedAvg",
            "fedstill.algorithms.averaging:FedAvg",
            "weighted mean of the clients' models (McMahan et al. 2017)",
        ),
        "centralised": Entry(
            "Centralised",
            "fedstill.algorithms.averaging:FedAvg",
            "control: all data pooled on one site, the ceiling",
            pooled=True,
            own_images="it pools all images on one site, where no client is left whose virtual set it could be",
        ),
        "fedprox": Entry(
            "FedProx",
            "fedstill.algorithms.fedprox:FedProx",
            "FedAvg whose clients are held near what they received (Li et al. 2020)",
        ),
        "fednova": Entry(
            "FedNova",
            "fedstill.algorithms.fednova:FedNova",
            "FedAvg of mean gradients, where clients take different numbers of steps (Wang et al. 2020)",
            no_budget="its server undoes steps of plain local training; update.epsilon makes what its clients send private",
            alone="its server weighs each client's update by its own number of steps",
        ),
        "scaffold": Entry(
            "SCAFFOLD",
            "fedstill.algorithms.scaffold:Scaffold",
            "control variates against the drift of clients (Karimireddy et al. 2020)",
            no_budget="its clients' control variates are not accounted for",
            sends=("model", "control"),
            alone="its server averages control variates beside models, and by other weights",
            starter=MappingProxyType({"algorithm.lr": 0.1}),  # the step that FedAvg's 0.01 is with its momentum of 0.9
        ),
        "fedavgm": Entry(
            "FedAvgM", "fedstill.algorithms.fedopt:FedAvgM", "FedAvg with momentum at the server (Hsu et al. 2019)"
        ),
        "fedadam": Entry(
            "FedAdam",
            "fedstill.algorithms.fedopt:FedAdam",
            "FedAvg with Adam at the server (Reddi et al. 2021)",
            starter=MappingProxyType({"algorithm.server_lr": 0.03}),
        ),
        "moon": Entry(
            "MOON",
            "fedstill.algorithms.contrast:MOON",
            "FedAvg whose features stay near the global model's, off the client's last (Li et al. 2021)",
            no_budget="its loss compares features of images, and private training takes the classification loss alone",
        ),
        "fedproto": Entry(
            "FedProto",
            "fedstill.algorithms.contrast:FedProto",
            "FedAvg whose features stay near shared class means, which classify too (Tan et al. 2022)",
            no_budget="the class means that its clients send are one more look at their images",
            sends=("model", "prototypes"),
            alone="its server averages class means beside models, each by its own number of images",
        ),
        "vhl": Entry(
            "VHL",
            "fedstill.algorithms.vhl:VHL",
            "FedAvg with virtual classes of noise that all clients share (Tang et al. 2022)",
            no_budget="its loss draws the features of a batch's images together",
        ),
        "feddm": Entry(
            "FedDM",
            "fedstill.algorithms.sharing:FedDM",
            "clients distil by distribution matching around the received weights and send images (Xiong et al. 2023)",
            distils=True,
            own_images="its clients distil images of their own, each round anew",
            alone="its server needs the union of the images that clients send, no sum",
            sends=("synthetic",),
            renamed=MappingProxyType(
                {"noise_multiplier": "privacy_noise", "clip": "privacy_clip", "delta": "privacy_delta"}
            ),
        ),
        "fedlgd": Entry(
            "FedLGD",
            "fedstill.algorithms.fedlgd:FedLGD",
            "clients train on virtual images of their own, drawn together by a set that the server distils (Huang et al. 2024)",
            no_budget="its clients look at their images in matching alone, which virtual.privacy_epsilon makes private",
            distils=True,
            may_send=("gradient",),
            alone="its server weighs clients otherwise than by images, and with some options needs their gradients",
            # the paper's 10,000 steps on 256 real images a class are a day of a CPU; larger steps go as far in a minute
            starter=MappingProxyType(
                {
                    "rounds": 10,
                    "model.width": 32,
                    "virtual.steps": 50,
                    "virtual.real_batch": 32,
                    "virtual.lr": 10.0,
                    "algorithm.lr": 0.1,
                    "algorithm.selected": {"count": 2, "every": 5, "first": 1},
                    "algorithm.match_steps": 10,
                    "algorithm.distill_steps": 50,
                }
            ),
        ),
        "oneshot": Entry(
            "OneShot",
            "fedstill.algorithms.oneshot:OneShot",
            "clients distil by trajectory matching against experts of their own and send images once (Epple)",
            lacks=MappingProxyType(
                {"privacy_rounds": "its clients send once, so that its budget lasts for that and needs no rounds"}
            ),
            distils=True,
            own_images="its clients distil images of their own",
            sends=("synthetic", "statistics"),
            alone="its server needs the union of the images that clients send, no sum",
            # the report's 30 experts and 2,000 steps are hours of a CPU
            starter=MappingProxyType(
                {
                    "rounds": 1,
                    "model.depth": 2,
                    "model.width": 16,
                    "algorithm.experts": 5,
                    "algorithm.expert_epochs": 10,
                    "algorithm.expert_batch": 32,
                    "algorithm.span": 2,
                    "algorithm.latest": 6,
                    "algorithm.student_steps": 10,
                    "algorithm.ipc": 2,
                    "algorithm.lr_images": 100.0,
                    "algorithm.distill_steps": 100,
                    "algorithm.check_every": 25,
                    "algorithm.judge_epochs": 100,
                    "algorithm.global_epochs": 200,
                }
            ),
        ),
        "feddgm": Entry(
            "FedDGM",
            "fedstill.algorithms.feddgm:FedDGM",
            "the server distils every client's update through a generator's latents (Jia et al. 2024)",
            distils=True,
            own_images="its server distils what clients learn from images of their own",
            alone="its server matches each client's own trajectory and needs each client's own update",
        ),
        "prioronly": Entry(
            "PriorOnly",
            "fedstill.algorithms.feddgm:FedDGM",
            "control: FedDGM with no distillation step, what the generator alone gives",
            fixed=MappingProxyType({"distill_steps": 0}),
            distils=True,
            own_images="its clients do nothing",
            alone="its clients send nothing that could be summed",
            sends=(),
            starter=MappingProxyType({"algorithm.generator": "digits"}),
        ),
    }
)
