"""Ten-class subsets of ImageNet, from a copy of the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from fedstill.data.images import find_images
from fedstill.data.settings import DataSettings, existing, place
from fedstill.data.sources import Raw, Rows
from fedstill.errors import InputError, unknown

__all__ = ["SUBSETS", "imagenet"]

SUBSETS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "immeow": {
            "n02123045": "tabby",
            "n02123159": "tiger cat",
            "n02123394": "Persian cat",
            "n02123597": "Siamese cat",
            "n02124075": "Egyptian cat",
            "n02129165": "lion",
            "n02129604": "tiger",
            "n02128925": "jaguar",
            "n02128757": "snow leopard",
            "n02127052": "lynx",
        },
        "imwoof": {
            "n02096294": "Australian terrier",
            "n02093754": "Border terrier",
            "n02111889": "Samoyed",
            "n02088364": "beagle",
            "n02086240": "Shih-Tzu",
            "n02089973": "English foxhound",
            "n02087394": "Rhodesian ridgeback",
            "n02115641": "dingo",
            "n02099601": "golden retriever",
            "n02105641": "Old English sheepdog",
        },
        "imfruit": {
            "n07753275": "pineapple",
            "n07753592": "banana",
            "n07745940": "strawberry",
            "n07747607": "orange",
            "n07749582": "lemon",
            "n07768694": "pomegranate",
            "n07753113": "fig",
            "n07720875": "bell pepper",
            "n07718472": "cucumber",
            "n07742313": "Granny Smith",
        },
        "imfood": {
            "n07697313": "cheeseburger",
            "n07697537": "hot dog",
            "n07695742": "pretzel",
            "n07873807": "pizza",
            "n07684084": "French loaf",
            "n07614500": "ice cream",
            "n07583066": "guacamole",
            "n07831146": "carbonara",
            "n07693725": "bagel",
            "n07613480": "trifle",
        },
        "immisc": {
            "n09229709": "bubble",
            "n03935335": "piggy bank",
            "n06874185": "traffic light",
            "n03065424": "coil",
            "n03617480": "kimono",
            "n02992211": "cello",
            "n03075370": "combination lock",
            "n04486054": "triumphal arch",
            "n03388043": "fountain",
            "n07716906": "spaghetti squash",
        },
        "imagenette": {
            "n01440764": "tench",
            "n02102040": "English springer",
            "n02979186": "cassette player",
            "n03000684": "chain saw",
            "n03028079": "church",
            "n03394916": "French horn",
            "n03417042": "garbage truck",
            "n03425413": "gas pump",
            "n03445777": "golf ball",
            "n03888257": "parachute",
        },
    }
)
"""WordNet id → class name. Five are in the order of FedDGM's lists (Jia et al., ECCV 2024), whose "Bengal" is the tiger cat;
imagenette is fast.ai's."""

_WANTED = "an ImageNet folder with train and val, each with a folder a class, named by WordNet id"


def imagenet(settings: DataSettings) -> Raw:
    """Ten classes of an ImageNet folder of the user's own (train/n02123045/…, val/n02123045/…): ``data.subset`` says which.

    Test images are those of ``val``. Other classes' folders are not looked into.
    """
    root = place(settings, _WANTED)
    if settings.subset is None:
        raise InputError(f"data.subset is missing: data.source = 'imagenet' needs one of {', '.join(SUBSETS)}")
    if settings.subset not in SUBSETS:
        raise unknown("data.subset", settings.subset, SUBSETS)
    classes = SUBSETS[settings.subset]
    test = (
        root / "val"
        if settings.test is None
        else existing(settings.test, "data.test", "a folder with a folder a class")
    )
    return Raw(_rows(root / "train", classes), _rows(test, classes), tuple(classes.values()))


def _rows(root: Path, classes: Mapping[str, str]) -> Rows:
    files: list[Path] = []
    labels: list[int] = []
    for label, (wnid, name) in enumerate(classes.items()):
        folder = root / wnid
        found = find_images(folder) if folder.is_dir() else []
        if not found:
            raise InputError(
                f"{folder} is missing or holds no image: class '{name}' is looked for there; it needs {_WANTED}"
            )
        files += found
        labels += [label] * len(found)
    return Rows(np.array(labels, np.int64), lambda row: files[row], lambda row: str(files[row]))
