"""What the photographs of Debian's ``tuxpaint-stamps-default`` show: curated by eye from its list of files.

Nothing of the package stands here but names of its files: it is GPL-2, and its user installs it. The longest beginning
of a path that is in the table decides; where none is, the caption names the thing.
"""

CARTOON = "cartoon"
"""Folders of this name hold drawings, wherever they are."""

# GenEval's names, where nobody who knows COCO's classes would call it otherwise; of photographs only.
CLASSES: dict[str, tuple[str, ...]] = {
    "airplane": ("vehicles/flight/planes/747", "military/vehicles/f22_raptor"),
    "apple": ("food/fruit/apple_",),
    "banana": ("food/fruit/banana",),
    "bear": ("animals/mammals/bears/bear", "animals/mammals/bears/european-bear"),
    "bird": ("animals/birds/",),
    "boat": ("vehicles/ship/",),
    "broccoli": ("food/vegetables/broccoli",),
    "bus": ("vehicles/masstransit/",),
    "car": ("vehicles/auto/", "vehicles/race/indycar"),
    "carrot": ("food/vegetables/carrot",),
    "cow": ("animals/mammals/bovines/cow", "animals/mammals/bovines/bull"),
    "cup": ("household/dishes/mug",),
    "dog": ("animals/mammals/dogs/dog", "animals/mammals/dogs/dingo"),
    "elephant": ("animals/mammals/elephant",),
    "giraffe": ("animals/mammals/giraffe",),
    "horse": ("animals/mammals/equines/horse",),
    "orange": ("food/fruit/orange", "food/fruit/mandarine"),
    "person": ("military/fireman", "people/fireman"),
    "scissors": ("household/arttools/scissors_",),
    "sheep": ("animals/mammals/bovines/sheep", "animals/mammals/bovines/ram"),
    "sports ball": (
        "sports/australian_rules_football", "sports/basketball", "sports/cricketball", "sports/football",
        "sports/soccer", "sports/tennis_ball",
    ),
    "teddy bear": ("animals/mammals/bears/toys/edward_bear",),
    "tennis racket": ("sports/tennis_racket",),
    "toilet": ("household/toilet",),
    "truck": ("vehicles/auto/truck", "vehicles/emergency/firetruck", "vehicles/garbagetruck"),
    "zebra": ("animals/mammals/equines/zebra",),
}  # fmt: skip

# One noun for what captions call by several, so that "is there a deer" is not denied where a doe stands.
OTHERS: dict[str, tuple[str, ...]] = {
    "camel": ("animals/mammals/camel/",),
    "deer": ("animals/mammals/deer/",),
    "fish": ("animals/fish/",),
    "flower": ("plants/flowers/",),
    "gnu": ("animals/mammals/bovines/gnu",),
    "goat": ("animals/mammals/bovines/goat", "animals/mammals/bovines/mountaingoat"),
    "guitar": ("hobbies/music/string/guitar",),
    "kangaroo": ("animals/marsupials/kangaroo",),
    "lion": ("animals/mammals/cats/lion",),
    "lobster": ("animals/fish/lobster",),
    "mushroom": ("food/vegetables/mushroom", "plants/mushrooms/"),
    "pig": ("animals/mammals/pig",),
    "rabbit": ("animals/mammals/rabbit", "animals/mammals/rodents/rabbit"),
    "seahorse": ("animals/fish/seahorse",),
    "shrimp": ("animals/fish/shrimp",),
    "tiger": ("animals/mammals/cats/tiger",),
    "tree": ("plants/trees/",),
    "wrench": ("household/tools/wrench",),
}

LEFT_OUT = (
    # drawings, silhouettes, signs
    "animals/insects/bee", "animals/mammals/echidna", "animals/mammals/hedgehog", "clothes/", "food/pizza",
    "medical/tooth", "naturalforces/", "people/body_parts/", "seasonal/", "symbols/", "town/flags/", "town/roadsigns/",
    # several things, or parts of one
    "food/fruit/sliced_", "plants/flowers/flower4", "plants/flowers/flower7", "plants/mushrooms/cep-2",
    "plants/trees/holly_leaves", "plants/trees/pinecone", "military/paratrooper",
    # named like a class, and not of it
    "sports/trophy_cup",
)  # fmt: skip

_NOUNS: dict[str, str | None] = {
    **{start: noun for table in (CLASSES, OTHERS) for noun, starts in table.items() for start in starts},
    **dict.fromkeys(LEFT_OUT),
}


def noun_of(stem: str, said: str | None) -> str | None:
    """What a cut-out shows; ``None``: nothing that could be asked for.

    Args:
        stem: The file's path below its folder of cut-outs, without suffix: ``animals/mammals/giraffe``.
        said: The noun in its caption, which counts where the table is silent.
    """
    if CARTOON in stem.split("/")[:-1]:
        return None
    start = max((start for start in _NOUNS if stem.startswith(start)), key=len, default=None)
    return said if start is None else _NOUNS[start]
