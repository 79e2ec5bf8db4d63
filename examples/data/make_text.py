"""python examples/data/make_text.py > examples/data/text.jsonl

Writes small made-up stories, one a line: text that a tiny model can learn a little of within a
few dozen steps, free of anyone's rights. The same script gives the same stories.
"""

import json
import random

STORIES = 320
ANIMALS = {
    "heron": ("Otto", "Hanna", "Pia"),
    "otter": ("Olli", "Tessa", "Mio"),
    "frog": ("Fritz", "Lotte", "Kim"),
    "hedgehog": ("Igor", "Nele", "Bo"),
    "owl": ("Ulla", "Erik", "Wanda"),
}
PLACES = ("river", "pond", "old mill", "stone bridge", "wet meadow", "garden", "lighthouse")
WEATHER = ("The sun was warm", "It was raining", "A light wind blew", "Fog lay on the water")
THINGS = ("silver key", "red apple", "paper boat", "small bell", "blue feather", "round stone")
WISHES = (
    "wanted to see the sea",
    "was looking for a friend",
    "could not sleep",
    "had lost the way home",
    "was hungry",
)
FINDS = ("found", "saw", "picked up", "stumbled over")
ENDS = (
    "From that day on they met every evening.",
    "So both of them went home and were content.",
    "Nobody ever asked where it had come from.",
    "And in the morning the water was calm again.",
)


def story(draw: random.Random) -> str:
    """Two animals, a place, a thing, and how it ended."""
    first, second = draw.sample(sorted(ANIMALS), 2)
    name, friend = draw.choice(ANIMALS[first]), draw.choice(ANIMALS[second])
    place, thing = draw.choice(PLACES), draw.choice(THINGS)
    return " ".join(
        [
            f"{name} the {first} lived near the {place}.",
            f"{draw.choice(WEATHER)}, and {name} {draw.choice(WISHES)}.",
            f"At the {draw.choice(PLACES)} {name} {draw.choice(FINDS)} a {thing}.",
            f'"Is this yours?" {name} asked {friend} the {second}.',
            f'"{draw.choice(("Yes", "No", "Perhaps"))}," said {friend}, "but we can share it."',
            draw.choice(ENDS),
        ]
    )


def main() -> None:
    """Print the stories as JSON lines."""
    draw = random.Random(0)
    for _ in range(STORIES):
        print(json.dumps({"text": story(draw)}))


if __name__ == "__main__":
    main()
