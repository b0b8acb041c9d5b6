"""The demo's words: nouns, names, places, requests and the plots of its stories. Data only; `corpus` tells with them."""

from collections.abc import Mapping
from types import MappingProxyType


def _listed(text: str) -> tuple[str, ...]:
    """The comma-separated entries of a text."""
    return tuple(entry.strip() for entry in text.split(","))


TRAIN_ANIMALS: tuple[str, ...] = _listed(
    """
    fox, bear, cat, dog, frog, goat, hen, horse, lion, mouse, mole, owl, otter, pig, rabbit, sheep,
    squirrel, tiger, turtle, wolf, duck, donkey, bee, ant
    """
)
HELDOUT_ANIMALS: tuple[str, ...] = ("elephant", "crow", "hedgehog", "goose", "cow", "deer", "lizard", "snail")
TRAIN_OBJECTS: tuple[str, ...] = _listed(
    """
    lantern, drum, kite, boat, apple, umbrella, hat, key, bell, basket, ball, blanket, cake, candle,
    box, book, coat, cup, flute, ladder, mirror, rope, wagon, egg
    """
)
HELDOUT_OBJECTS: tuple[str, ...] = _listed(
    """
    onion, pillow, whistle, spoon, button, feather, acorn, teapot
    """
)

TRAIN_NOUNS: tuple[str, ...] = TRAIN_ANIMALS + TRAIN_OBJECTS
HELDOUT_NOUNS: tuple[str, ...] = HELDOUT_ANIMALS + HELDOUT_OBJECTS
ALL_NOUNS: tuple[str, ...] = TRAIN_NOUNS + HELDOUT_NOUNS
ANIMALS: frozenset[str] = frozenset(TRAIN_ANIMALS + HELDOUT_ANIMALS)

NAMES: tuple[str, ...] = _listed(
    """
    Mia, Tom, Anna, Ben, Lily, Sam, Ella, Max, Nora, Leo, Ruby, Finn, Ivy, Jack, Zoe, Oscar, Lucy, Hugo,
    Maya, Theo, Clara, Toby, Nina, Milo
    """
)
PLACES: tuple[str, ...] = _listed(
    """
    near the river, in the garden, in the forest, on the hill, by the lake, on the farm, in the village,
    near the mill, by the sea, in the meadow, near the bridge, in the valley
    """
)
ANIMAL_ADJECTIVES: tuple[str, ...] = ("small", "brave", "kind", "shy", "clever", "gentle", "old", "quiet")
OBJECT_ADJECTIVES: tuple[str, ...] = ("big", "little", "lovely", "golden", "strange", "red", "blue", "pretty")
DAYS: tuple[str, ...] = _listed(
    """
    one day, one morning, one evening, one sunny day, one windy day, one cold morning,
    early one morning, late one evening
    """
)

CLOSINGS: tuple[str, ...] = (
    "From that day on, everyone was happy.",
    "It was a happy ending for everyone.",
    "And so the day had a happy ending.",
    "It had been the best day of all.",
    "And that is how they became friends for life.",
)

REQUESTS: tuple[str, ...] = (
    "Tell a story about {pair}.",
    "Please tell me a story about {pair}.",
    "Write a short story with {pair} in it.",
    "Can you tell me a tale about {pair}?",
    "I would like to hear a story about {pair}.",
    "Make up a little story that has {pair} in it.",
)
FOLLOW_UPS: tuple[str, ...] = (
    "Now tell one about {pair}.",
    "Thank you! Now tell one about {pair}.",
    "That was nice. Please tell another one about {pair}.",
)
TITLES: tuple[str, ...] = ("A story about {pair}.", "A tale about {pair}.")

# How often the teacher uses none, one or both of the requested nouns, and the same for preference candidates.
TEACHER_WEIGHTS: tuple[float, float, float] = (0.15, 0.30, 0.55)
CANDIDATE_WEIGHTS: tuple[float, float, float] = (0.20, 0.30, 0.50)
# How a preference candidate ends: properly, without its closing sentence, or in the middle of a sentence.
ENDING_WEIGHTS: tuple[float, float, float] = (0.60, 0.20, 0.20)
TWO_TURN_SHARE = 0.15
TITLE_SHARE = 0.5

Beat = tuple[str, ...]
Plot = tuple[Beat, ...]

LIVED: Beat = (
    "once upon a time, {a_first} lived {place}.",
    "there was once {a_first} that lived {place}.",
    "long ago, {a_first} had a home {place}.",
    "{a_first} called {nickname} lived {place}.",
)
WALKED: Beat = (
    "{day}, {a_first} went for a walk {place}.",
    "{day}, {a_first} was playing {place}.",
    "{a_first} called {nickname} went out to play {place}.",
)
BOTH_LIVED: Beat = (
    "once upon a time, {a_first} and {a_second} lived {place}.",
    "there once were {a_first} and {a_second} that lived {place}.",
    "long ago, {a_first} had a home {place} next to {a_second}.",
)

ANIMAL_AND_OBJECT_PLOTS: tuple[Plot, ...] = (
    (  # a treasure is lost and found again
        LIVED,
        (
            "the {first} had {a_second} and loved it very much.",
            "{a_second} was the best thing the {first} had.",
        ),
        (
            "{day}, the {second} was gone, so the {first} began to cry.",
            "{day}, the {first} lost the {second} in the tall grass and felt very sad.",
        ),
        (
            "{name} helped the {first} look for a long time, and they found the {second} {spot}.",
            '"I will help you," said {name}, and soon they found the {second} under a tree.',
            "{name} heard this, came to help, and saw the {second} behind a big tree.",
        ),
    ),
    (  # a find is given back to its owner
        WALKED,
        ("there the {first} found {a_second} in the grass.", "the {first} looked down and saw {a_second}."),
        (
            "then the {first} saw that {name} was sad, because the {second} was lost.",
            "the {first} wanted to keep the {second}, but then it heard {name} crying.",
            '"Where is my {second}?" cried {name}, and the {first} heard it.',
        ),
        (
            "so the {first} gave the {second} back, and {name} gave the {first} a big hug.",
            '"Here it is," said the {first}, and {name} was so glad to have the {second} back.',
        ),
    ),
    (  # a birthday present
        LIVED,
        (
            "{day}, the {first} was sad, because it had no birthday present.",
            "it was the birthday of the {first}, but nobody had come to see it.",
        ),
        (
            "{name} wanted to help, so {name} looked {spot} and found {a_second}.",
            "{name} heard about it and came to visit with {a_second}.",
        ),
        (
            "the {first} saw the {second} and danced with joy.",
            '"This {second} is just what I wanted," said the {first} with a big smile.',
            "when the {first} got the {second}, it laughed and thanked {name}.",
        ),
    ),
    (  # something is stuck
        WALKED,
        ("the {first} saw {a_second} that was stuck in the mud.", "there was {a_second} deep in the mud."),
        (
            "the {first} pulled and pulled, but the {second} did not move.",
            "the {first} was too tired to pull the {second} out.",
        ),
        (
            "then {name} came to help, and together they got the {second} out of the mud.",
            '"We can do it together," said {name}, and at last the {second} came out.',
        ),
    ),
)

TWO_ANIMALS_PLOTS: tuple[Plot, ...] = (
    (  # a first friend
        LIVED,
        ("the {first} had no friends, so it was often sad.", "the {first} had nobody to play with."),
        ("{day}, {a_second} came by and asked the {first} to play.", "{day}, it met {a_second} {spot}."),
        (
            "the {first} and the {second} played {spot} until the sun went down.",
            "soon the {first} and the {second} were singing and dancing together.",
        ),
    ),
    (  # a rescue
        WALKED,
        (
            "the {first} heard a cry and saw {a_second} in a deep hole.",
            '"Please help me," cried {a_second} that had fallen into a deep hole.',
        ),
        (
            "so the {first} found a long stick and pulled the {second} out.",
            "the {first} ran to get {name}, and together they pulled the {second} out.",
        ),
        (
            "the {second} said thank you and gave the {first} some sweet berries.",
            '"You saved me," said the {second}, and it gave the {first} a big hug.',
        ),
    ),
    (  # a quarrel
        BOTH_LIVED,
        (
            "{day}, they both wanted the last berry, so they began to fight.",
            "{day}, they both wanted to sit in the same sunny spot and began to shout.",
        ),
        (
            "{name} heard the noise and told them that it is good to share.",
            "then it began to rain, and soon they were both cold and wet.",
        ),
        (
            "the {first} said sorry to the {second}, and they hugged.",
            '"I am sorry," said the {first}, and the {second} was sorry too.',
        ),
    ),
    (  # a race
        (
            "{day}, {a_first} and {a_second} had a race {place}.",
            "{a_first} met {a_second} {place} for a race.",
        ),
        (
            "the {first} went so fast that it fell down and got hurt.",
            "the {first} was in front, but then it fell into the mud.",
        ),
        (
            "the {second} could have won, but it stopped to help.",
            '"I will not leave you here," said the {second}, and it turned back.',
        ),
        (
            "so the {first} thanked the {second}, and they walked home together.",
            "in the end, the {first} and the {second} came home side by side.",
        ),
    ),
)

TWO_OBJECTS_PLOTS: tuple[Plot, ...] = (
    (  # a trade
        (
            "{name} had {a_first}, and {friend} had {a_second}.",
            "{name} had {a_first}, but {friend} had {a_second}.",
        ),
        ("{day}, they met {place}.", "{day}, they went to play {place}."),
        (
            "{name} liked the {second} so much that {name} wanted to have it.",
            '"Your {second} is so nice," said {name}, "and I do not have one."',
        ),
        (
            "so {name} gave the {first} to {friend}, and {friend} gave the {second} to {name}.",
            "{friend} wanted the {first}, so they were both glad to trade it for the {second}.",
        ),
    ),
    (  # a search at home
        (
            "once upon a time, {name} lived {place} and had {a_first} and {a_second}.",
            "{name} had a small house {place} with {a_first} and {a_second} in it.",
        ),
        (
            "{day}, the {first} was gone, and {name} was very sad.",
            "{day}, {name} could not find the {first}.",
        ),
        ("{friend} came to help, and they looked for it all day.", '"I will help you look," said {friend}.'),
        (
            "at last {friend} saw the {first}, because it was right behind the {second}.",
            "then {name} moved the {second}, and there was the {first}.",
        ),
    ),
    (  # a present that got lost
        (
            "it was the birthday of {friend}, so {name} wanted to bring {a_first}.",
            "{name} had {a_first} for the birthday of {friend}.",
        ),
        (
            "but on the way, {name} lost the {first} {place} and began to cry.",
            "but {name} fell down {place}, and the {first} was lost in the mud.",
        ),
        (
            "a kind old man saw this and gave {name} {a_second}.",
            '"Take this," said a kind old woman, and she gave {name} {a_second}.',
        ),
        (
            "{friend} loved the {second} and was not sad about the {first} at all.",
            '"This {second} is even better than the {first}," said {friend} with a smile.',
        ),
    ),
    (  # digging for treasure
        (
            "{day}, {name} and {friend} were digging a hole {place}.",
            "{name} and {friend} liked to dig {place}.",
        ),
        (
            "{name} found {a_first}, and then {friend} found {a_second}.",
            "they dug and dug until they found {a_first} and {a_second}.",
        ),
        (
            "a poor old woman came by and said that the {first} and the {second} were hers.",
            "they did not know who had lost the {first} and the {second}, so they asked an old woman.",
        ),
        (
            "she was so glad to have them back that she gave the children warm bread.",
            '"They are mine," she said, and she thanked the children with warm bread.',
        ),
    ),
)

PLOTS: Mapping[int, tuple[Plot, ...]] = MappingProxyType(
    {0: TWO_OBJECTS_PLOTS, 1: ANIMAL_AND_OBJECT_PLOTS, 2: TWO_ANIMALS_PLOTS}
)
