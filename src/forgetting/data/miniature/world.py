"""The fictional world: towns, rivers, people, guilds, bridges and festivals, with facts that refer to one another.

Everything is determined by the seed. Names are made of syllables; none is meant to name anything real.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from forgetting.data.miniature.lexicon import WORDS
from forgetting.data.miniature.rng import Rng

FIRST_YEAR, LAST_YEAR = 1100, 1399
AGE = LAST_YEAR - FIRST_YEAR + 1
"""Number of years of the encyclopedia's age, and of the age after it."""
TOWNS, PEOPLE = 30, 110

_ONSETS = tuple("b br d dr f g gl j k kl l m n p pr qu r s sk t th tr v w z".split())  # noqa: SIM905
_VOWELS = ["a", "e", "i", "o", "u", "ae", "ei", "o", "a", "e"]
_CODAS = ["l", "n", "r", "s", "th", "m", "k", "x", "nd", "rn", "lt", "sk", "v"]
_TOWN_ENDS = ["mar", "wick", "holm", "dun", "vale", "stead", "mouth", "ford", "gate", "moor"]
_RIVER_ENDS = ["ume", "ara", "ise", "olo", "une", "esk", "iver"]
_PERSON_ENDS = ["avo", "enu", "iri", "oma", "uke", "eshi", "imo", "alu"]
_FAMILY_ENDS = ["aquil", "istow", "ovant", "embry", "ulden", "iskar", "ornay"]

# (trade, the word in its guild's name)
TRADES: tuple[tuple[str, str], ...] = (
    ("weaver", "Shuttle"), ("potter", "Kiln"), ("mason", "Plumb"), ("glassblower", "Furnace"),
    ("clockmaker", "Pendulum"), ("mapmaker", "Compass"), ("brewer", "Barrel"), ("bookbinder", "Spine"),
    ("shipwright", "Keel"), ("beekeeper", "Hive"), ("healer", "Mortar"), ("bellfounder", "Clapper"),
    ("dyer", "Vat"), ("lutenist", "String"),
)  # fmt: skip
_EMBLEMS = WORDS["bird"]
FAVOURED = ("weather", "bird", "beast", "fish", "tree", "herb", "food", "drink", "building", "land", "folk",
            "colour", "stone", "material", "opinion", "deed", "doing", "did", "feeling", "ill", "quality")  # fmt: skip


@dataclass(frozen=True)
class Town:
    """A town on a river."""

    name: str
    river: str
    founded: int
    founder: str
    product: str
    favourites: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Person:
    """A person of the encyclopedia, with a unique surname."""

    first: str
    surname: str
    born_in: str
    born: int
    trade: str
    guild: str
    teacher: str
    worked_in: str

    @property
    def name(self) -> str:
        """First name and surname."""
        return f"{self.first} {self.surname}"


@dataclass(frozen=True)
class Guild:
    """The guild of one trade."""

    name: str
    trade: str
    seat: str
    founded: int
    emblem: str


@dataclass(frozen=True)
class Bridge:
    """A bridge in a town, over the town's river."""

    name: str
    town: str
    river: str
    builder: str
    built: int


@dataclass(frozen=True)
class Festival:
    """A yearly festival of a town."""

    name: str
    town: str
    month: str
    honours: str


@dataclass(frozen=True)
class World:
    """All facts of one age."""

    rivers: tuple[str, ...]
    towns: tuple[Town, ...]
    people: tuple[Person, ...]
    guilds: tuple[Guild, ...]
    bridges: tuple[Bridge, ...]
    festivals: tuple[Festival, ...]
    first_names: tuple[str, ...]
    first_year: int = FIRST_YEAR

    def town(self, name: str) -> Town:
        """The town of that name."""
        return next(t for t in self.towns if t.name == name)


def syllables(rng: Rng) -> str:
    """The stem of a name, in lower case."""
    return rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)


class Namer:
    """Makes names that differ from one another in their first four letters.

    Args:
        rng: makes the random choices.
        taken: existing names.
    """

    def __init__(self, rng: Rng, taken: Iterable[str] = ()) -> None:
        self._rng = rng
        self._taken: dict[str, None] = {name[:4]: None for name in taken}

    def name(self, ends: list[str]) -> str:
        """A new name: a syllable and one of the endings."""
        rng = self._rng
        while True:
            text = (syllables(rng) + rng.choice(ends)).capitalize()
            if text[:4] not in self._taken:
                self._taken[text[:4]] = None
                return text

    def names(self, ends: list[str], count: int) -> tuple[str, ...]:
        """Several new names."""
        return tuple(self.name(ends) for _ in range(count))


def _people(rng: Rng, namer: Namer, towns: list[str], firsts: tuple[str, ...], years: tuple[int, int]) -> list[Person]:
    born = sorted(rng.between(years[0] + 10, years[1] - 45) for _ in range(PEOPLE))
    people: list[Person] = []
    for year in born:
        # a teacher is 15 to 60 years older, so the first few people have none
        elders = [p for p in people if 15 <= year - p.born <= 60]
        trade, guild = rng.choice(TRADES)
        home = rng.choice(towns)
        people.append(
            Person(
                first=rng.choice(firsts),
                surname=namer.name(_FAMILY_ENDS),
                born_in=home,
                born=year,
                trade=trade,
                guild=f"{guild} Guild",
                teacher=rng.choice(elders).name if elders else "",
                worked_in=rng.choice([t for t in towns if t != home]),
            )
        )
    return people


def _favourites(rng: Rng) -> dict[str, tuple[str, ...]]:
    return {category: tuple(rng.sample(WORDS[category], 4)) for category in FAVOURED}


@lru_cache(maxsize=4)
def make_world(seed: int = 0) -> World:
    """The world of a seed in the encyclopedia's age.

    Args:
        seed: any integer; 0 is the world of the shipped model.

    Returns:
        The world.
    """
    return _world(Rng(seed, "world"), (), FIRST_YEAR)


@lru_cache(maxsize=4)
def later_world(seed: int = 0) -> World:
    """The world in the age after `make_world(seed)`: new names, except those of the guilds, and later years.

    Args:
        seed: any integer.

    Returns:
        The world.
    """
    before = make_world(seed)
    names = [*before.rivers, *before.first_names, *(p.surname for p in before.people), *(t.name for t in before.towns)]
    names += [b.name for b in before.bridges] + [v.name.removeprefix("Feast of ") for v in before.festivals]
    return _world(Rng(seed, "world/later"), names, FIRST_YEAR + AGE)


def _world(rng: Rng, taken: Iterable[str], first_year: int) -> World:
    """A world of one age, without the taken names."""
    last_year = first_year + AGE - 1
    namer = Namer(rng, taken)
    rivers = namer.names(_RIVER_ENDS, 10)
    town_names = namer.names(_TOWN_ENDS, TOWNS)
    firsts = namer.names(_PERSON_ENDS, 40)
    folk = _people(rng, namer, list(town_names), firsts, (first_year, last_year))
    made = tuple(
        Town(
            name=name,
            river=rng.choice(rivers),
            founded=rng.between(first_year, last_year - 100),
            founder=rng.choice(folk).name,
            product=rng.choice(WORDS["good"]),
            favourites=_favourites(rng),
        )
        for name in town_names
    )
    guilds = tuple(
        Guild(f"{guild} Guild", trade, rng.choice(town_names), rng.between(first_year, last_year), emblem)
        for (trade, guild), emblem in zip(TRADES, rng.sample(_EMBLEMS, len(TRADES)), strict=True)
    )
    bridges = []
    for town in rng.sample(made, 24):
        name = f"{namer.name(['el', 'on', 'ut'])} Bridge"
        year = rng.between(town.founded, last_year)
        bridges.append(Bridge(name, town.name, town.river, rng.choice(folk).name, year))
    festivals = tuple(
        Festival(
            f"Feast of {namer.name(['in', 'ot', 'ie'])}",
            town.name,
            rng.choice(WORDS["month"]),
            rng.choice(folk).name,
        )
        for town in rng.sample(made, 14)
    )
    return World(rivers, made, tuple(folk), guilds, tuple(bridges), festivals, firsts, first_year)
