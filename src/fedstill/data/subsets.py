"""Ten-class subsets of ImageNet: the ids of their classes, their names, and their numbers among the thousand."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["NUMBERS", "SUBSETS"]

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

NUMBERS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "immeow": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
        "imwoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
        "imfruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
        "imfood": (933, 934, 932, 963, 930, 928, 924, 959, 931, 927),
        "immisc": (971, 719, 920, 506, 614, 486, 507, 873, 562, 940),
        "imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    }
)
"""The same classes, in the same order, by their number 0 … 999 among the classes of ImageNet-1k in the order of their ids, which
is how networks that were trained on all of them count."""
