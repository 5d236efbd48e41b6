"""The words that the tasks use: number names, days, months, phrases and capitals to spell."""

# ruff: noqa: SIM905 - a long list of words is easiest to read as lines of words

import random
import re

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LARGEST_NAMED = 200

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()

_PLAIN = (
    "red green blue yellow black white small big happy quiet warm cold fox cat dog bird fish "
    "horse tree river stone cloud rain snow sun moon star house door window road bridge boat "
    "train car apple bread milk tea coffee salt book pen lamp chair table garden flower hello "
    "good night morning evening friend music song dance winter summer spring autumn light water "
    "fire earth wind old new fast slow soft bright dark open sweet kind brave gentle silver gold "
    "the a my our this that and with under over near"
).split()
# Characters of several bytes, which the tokenizer keeps as single bytes: an answer made of them
# exercises a server that must not send half a character.
_WIDE = "café naïve señor straße 你好 世界 ありがとう привет 🙂 🚀 →".split()

_CAPITALS = (
    "ACORN ANCHOR APPLE ARROW AUTUMN BADGER BAKER BANANA BASKET BEACH BEAVER BIRD BOTTLE BRIDGE "
    "BUTTER CACTUS CAMEL CANDLE CARPET CASTLE CAT CHAIR CHEESE CHERRY CIRCLE CLOUD COFFEE COPPER "
    "CORAL COTTON CROW DESERT DOG DOLPHIN DONKEY DRAGON EAGLE EARTH ELBOW ENGINE FALCON FEATHER "
    "FINGER FLOWER FOREST FOX GARDEN GARLIC GIRAFFE GLASS GRAPE GUITAR HAMMER HARBOR HONEY HORSE "
    "ICE ISLAND JACKET JUNGLE KETTLE KITTEN LADDER LEMON LIBRARY LION LIZARD MAGNET MANGO MAPLE "
    "MARBLE MIRROR MONKEY MOON NEEDLE NIGHT NUMBER OAK OCEAN OLIVE ONION ORANGE OTTER OWL PAPER "
    "PARROT PENCIL PEPPER PIANO PILLOW PLANET POCKET POTATO PYTHON QUEEN RABBIT RAVEN RIVER ROCKET "
    "SADDLE SALMON SCHOOL SHADOW SILVER SNOW SPIDER SPOON SQUARE STONE SUMMER SUN TABLE TEA TIGER "
    "TOMATO TRAIN TURTLE UMBRELLA VALLEY VIOLIN WALNUT WATER WHALE WINDOW WINTER WOLF YELLOW ZEBRA"
).split()


def in_words(number: int) -> str:
    """The English name of 0..200, without "and": 121 is "one hundred twenty-one"."""
    if not 0 <= number <= LARGEST_NAMED:
        raise ValueError(f"no name for {number}")
    hundreds, rest = divmod(number, 100)
    if hundreds:
        return f"{_ONES[hundreds]} hundred" + (f" {in_words(rest)}" if rest else "")
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens] + (f"-{_ONES[ones]}" if ones else "")


def with_digits(text: str) -> str:
    """The text with every number name in it written in digits."""
    return _NAMES.sub(lambda name: str(_NUMBERS[name.group()]), text)


def phrase(rng: random.Random) -> str:
    """One to four words; sometimes a made-up one or one of multi-byte characters."""
    return " ".join(_phrase_word(rng) for _ in range(rng.choice((1, 1, 2, 2, 3, 4))))


def capitals(rng: random.Random) -> str:
    """A word in capitals: half are English, half are 2 to 10 random letters, so that spelling is
    learned as copying and not as a dictionary."""
    if rng.random() < 0.5:
        return rng.choice(_CAPITALS)
    return "".join(rng.choices(ALPHABET, k=rng.randint(2, 10)))


def _phrase_word(rng: random.Random) -> str:
    chance = rng.random()
    if chance < 0.08:
        return rng.choice(_WIDE)
    if chance < 0.14:
        return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(2))
    return rng.choice(_PLAIN)


_NUMBERS = {in_words(number): number for number in range(LARGEST_NAMED + 1)}
_NAMES = re.compile(r"\b(" + "|".join(sorted(_NUMBERS, key=len, reverse=True)) + r")\b")
