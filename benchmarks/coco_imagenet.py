"""Which of ImageNet's classes a COCO class is made of, by the public names of both."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.errors import InputError

#: COCO class -> ImageNet classes, each by the beginning of its name; "a .. b" are all from a to b in ImageNet's order,
#: which follows WordNet, so that a whole branch (birds, dogs, cats, bears) is one run.
TABLE: dict[str, tuple[str, ...]] = {
    "bicycle": ("bicycle-built-for-two", "mountain bike"),
    "car": (
        "ambulance",
        "beach wagon",
        "cab",
        "convertible",
        "jeep",
        "limousine",
        "minivan",
        "Model T",
        "racer",
        "sports car",
    ),
    "motorcycle": ("moped", "motor scooter"),
    "airplane": ("airliner", "warplane"),
    "bus": ("minibus", "school bus", "trolleybus"),
    "train": ("bullet train", "electric locomotive", "passenger car", "steam locomotive", "freight car"),
    "truck": ("fire engine", "garbage truck", "moving van", "pickup", "tow truck", "trailer truck"),
    "boat": ("canoe", "catamaran", "fireboat", "gondola", "lifeboat", "speedboat", "trimaran", "yawl"),
    "traffic light": ("traffic light",),
    "stop sign": ("street sign",),
    "bench": ("park bench",),
    "bird": ("cock .. great grey owl", "black grouse .. black swan", "white stork .. albatross"),
    "cat": ("tabby .. Egyptian cat",),
    "dog": ("Chihuahua .. Mexican hairless",),
    "horse": ("sorrel",),
    "sheep": ("ram", "bighorn"),
    "elephant": ("tusker", "Indian elephant", "African elephant"),
    "bear": ("brown bear .. sloth bear",),
    "zebra": ("zebra",),
    "backpack": ("backpack",),
    "umbrella": ("umbrella",),
    "handbag": ("purse",),
    "tie": ("bow tie", "Windsor tie"),
    "skis": ("ski",),
    "sports ball": ("baseball", "basketball", "golf ball", "rugby ball", "soccer ball", "tennis ball", "volleyball"),
    "bottle": ("beer bottle", "pop bottle", "water bottle", "wine bottle"),
    "wine glass": ("goblet", "red wine"),
    "cup": ("cup", "coffee mug"),
    "bowl": ("mixing bowl", "soup bowl"),
    "banana": ("banana",),
    "apple": ("Granny Smith",),
    "orange": ("orange",),
    "broccoli": ("broccoli",),
    "hot dog": ("hotdog",),
    "pizza": ("pizza",),
    "chair": ("barber chair", "folding chair", "rocking chair"),
    "couch": ("studio couch",),
    "potted plant": ("pot",),
    "bed": ("four-poster",),
    "dining table": ("dining table",),
    "toilet": ("toilet seat",),
    "tv": ("television",),
    "laptop": ("laptop", "notebook"),
    "mouse": ("mouse",),
    "remote": ("remote control",),
    "keyboard": ("computer keyboard",),
    "cell phone": ("cellular telephone",),
    "microwave": ("microwave",),
    "oven": ("stove",),
    "sink": ("washbasin",),
    "refrigerator": ("refrigerator",),
    "clock": ("analog clock", "digital clock", "wall clock"),
    "vase": ("vase",),
    "teddy bear": ("teddy",),
}


def groups(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the indices of each COCO class's ImageNet classes.

    Args:
        names: ImageNet's, in index order; synonyms may follow behind a comma.

    Raises:
        InputError: a name of the table is none of them.
    """
    first = [name.partition(",")[0].strip() for name in names]

    def index(name: str) -> int:
        # Two classes are called "crane", and two "maillot"; none of them is in the table.
        if name not in first:
            raise InputError(f"the model has no ImageNet class '{name}'; give ImageNet's 1000 names in their order")
        return first.index(name)

    found: dict[str, list[int]] = {}
    for coco, parts in TABLE.items():
        indices: list[int] = []
        for part in parts:
            low, dots, high = part.partition(" .. ")
            indices += range(index(low), index(high) + 1) if dots else [index(low)]
        found[coco] = indices
    return found
