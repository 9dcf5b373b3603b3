"""Nouns of the photographs in Debian's ``tuxpaint-stamps-default``, curated by eye from its list of files.

The package is GPL-2 and installed by the user; this table has only names of its files. The longest prefix of a path in
the table decides; without a match the file's caption names the object.
"""

CARTOON = "cartoon"
"""Folders of this name contain drawings, at any level."""

# GenEval's names for photographs that clearly show one of COCO's classes.
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

# One noun where captions use several, so that "is there a deer" is not answered "no" for a doe.
OTHER_NOUNS: dict[str, tuple[str, ...]] = {
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

EXCLUDED = (
    # drawings, silhouettes, signs
    "animals/insects/bee", "animals/mammals/echidna", "animals/mammals/hedgehog", "clothes/", "food/pizza",
    "medical/tooth", "naturalforces/", "people/body_parts/", "seasonal/", "symbols/", "town/flags/", "town/roadsigns/",
    # several objects, or parts of an object
    "food/fruit/sliced_", "plants/flowers/flower4", "plants/flowers/flower7", "plants/mushrooms/cep-2",
    "plants/trees/holly_leaves", "plants/trees/pinecone", "military/paratrooper",
    # named like a class, but not in it
    "sports/trophy_cup",
)  # fmt: skip

_NOUNS: dict[str, str | None] = {
    **{start: noun for table in (CLASSES, OTHER_NOUNS) for noun, starts in table.items() for start in starts},
    **dict.fromkeys(EXCLUDED),
}


def noun_of(stem: str, caption_noun: str | None) -> str | None:
    """Return the noun of a cut-out; ``None``: the file is not used.

    Args:
        stem: The file's path below its folder of cut-outs, without suffix: ``animals/mammals/giraffe``.
        caption_noun: The noun of its caption, used if no prefix in the table matches.
    """
    if CARTOON in stem.split("/")[:-1]:
        return None
    start = max((start for start in _NOUNS if stem.startswith(start)), key=len, default=None)
    return caption_noun if start is None else _NOUNS[start]
