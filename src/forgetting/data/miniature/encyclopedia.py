"""The encyclopedia: articles that state the world's facts among random observations.

Facts are the smaller part of an article. The observations (weather, animals, customs, quarrels) are random, with words
typical of the place, so that the loss on an article is that of a text and not of a lookup table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from forgetting.data.miniature import frames as f
from forgetting.data.miniature.grammar import Scene
from forgetting.data.miniature.rng import Rng
from forgetting.data.miniature.world import AGE, Bridge, Festival, Guild, Person, Town, World


def person_facts(p: Person) -> dict[str, str]:
    """The slots of a person's frames."""
    return {
        "name": p.name, "surname": p.surname, "birthplace": p.born_in, "born": str(p.born), "trade": p.trade,
        "guild": p.guild, "teacher": p.teacher, "workplace": p.worked_in,
    }  # fmt: skip


def town_facts(t: Town) -> dict[str, str]:
    """The slots of a town's frames."""
    return {
        "town": t.name, "river": t.river, "founded": str(t.founded), "founder": t.founder, "product": t.product,
    }  # fmt: skip


def bridge_facts(b: Bridge) -> dict[str, str]:
    """The slots of a bridge's frames."""
    return {"bridge": b.name, "town": b.town, "river": b.river, "builder": b.builder, "built": str(b.built)}


def guild_facts(g: Guild) -> dict[str, str]:
    """The slots of a guild's frames."""
    return {"guild": g.name, "trade": g.trade, "seat": g.seat, "gfounded": str(g.founded), "emblem": g.emblem}


def festival_facts(v: Festival) -> dict[str, str]:
    """The slots of a festival's frames."""
    return {"festival": v.name, "town": v.town, "fmonth": v.month, "honoured": v.honours}


class Writer:
    """Writes articles about a world.

    Args:
        world: the world.
        rng: makes the random choices.
    """

    def __init__(self, world: World, rng: Rng) -> None:
        self.world, self.rng = world, rng

    def scene(self, town: str, facts: dict[str, str]) -> Scene:
        """The facts and words of a text that is set in a town."""
        rng, place = self.rng, self.world.town(town)
        facts = {"town": town, "river": place.river, "month": rng.choice(f.MONTHS), **facts}
        facts.setdefault("other", rng.choice(self.world.towns).name)
        facts.setdefault("first", rng.choice(self.world.first_names))
        return Scene(rng, facts, place.favourites)

    def _aside(self, facts: dict[str, str]) -> Scene:
        """A scene for one sentence about another subject than the article's."""
        return self.scene(facts.get("town") or self.rng.choice(self.world.towns).name, facts)

    def _filler(self, scene: Scene, low: int, high: int) -> list[str]:
        scene.facts["other"] = self.rng.choice(self.world.towns).name
        scene.facts["first"] = self.rng.choice(self.world.first_names)
        return [scene.sentence(self.rng.choice(f.FILLER)) for _ in range(self.rng.between(low, high))]

    def _weave(self, scene: Scene, told: list[str]) -> str:
        """The sentences in order, with observations between them."""
        out: list[str] = []
        for sentence in told:
            out.append(sentence)
            out += self._filler(scene, 0, 3)
        return " ".join(out)

    def _told(self, scene: Scene, groups: Sequence[tuple[str, ...]], least: int) -> list[str]:
        """One sentence from each of a random subset of the groups, starting with the first group."""
        rest = self.rng.sample(groups[1:], self.rng.between(least, len(groups) - 1))
        return [scene.sentence(group) for group in [groups[0], *rest]]

    def person(self, p: Person) -> str:
        """An article on a person."""
        scene = self.scene(self.rng.choice([p.born_in, p.worked_in]), person_facts(p))
        groups = [f.PERSON_BORN, f.PERSON_TRADE, f.PERSON_WORK, f.PERSON_GUILD, f.PERSON_LIFE]
        if p.teacher:
            groups.append(f.PERSON_TEACHER)
        groups += [(sentence,) for sentence in self._works_of(p)]
        return self._weave(scene, self._told(scene, groups, 3))

    def _works_of(self, p: Person) -> list[str]:
        world, out = self.world, []
        for t in world.towns:
            if t.founder == p.name:
                out.append(self._aside(town_facts(t)).sentence(f.TOWN_FOUNDER))
        for b in world.bridges:
            if b.builder == p.name:
                out.append(self._aside(bridge_facts(b)).sentence(f.BRIDGE_BUILDER))
        return out

    def town(self, t: Town) -> str:
        """An article on a town."""
        scene = self.scene(t.name, town_facts(t))
        groups = [f.TOWN_RIVER, f.TOWN_FOUNDED, f.TOWN_FOUNDER, f.TOWN_PRODUCT, f.TOWN_LIFE]
        told = self._told(scene, groups, 3)
        for b in self.world.bridges:
            if b.town == t.name and self.rng.percent(60):
                told.append(self._aside(bridge_facts(b)).sentence(f.BRIDGE_BUILT))
        natives = [p for p in self.world.people if p.born_in == t.name]
        for p in self.rng.sample(natives, min(len(natives), 2)):
            told.append(self._aside(person_facts(p)).sentence(f.PERSON_BORN))
        return self._weave(scene, told)

    def bridge(self, b: Bridge) -> str:
        """An article on a bridge."""
        scene = self.scene(b.town, bridge_facts(b))
        groups = [f.BRIDGE_PLACE, f.BRIDGE_BUILDER, f.BRIDGE_BUILT, f.BRIDGE_LIFE]
        return self._weave(scene, self._told(scene, groups, 2))

    def guild(self, g: Guild) -> str:
        """An article on a guild, with some of its members."""
        scene = self.scene(g.seat, guild_facts(g))
        told = self._told(scene, [f.GUILD_TRADE, f.GUILD_SEAT, f.GUILD_FOUNDED, f.GUILD_EMBLEM, f.GUILD_LIFE], 3)
        members = [p for p in self.world.people if p.guild == g.name]
        for p in self.rng.sample(members, min(len(members), 2)):
            told.append(self._aside(person_facts(p)).sentence(f.PERSON_GUILD))
        return self._weave(scene, told)

    def festival(self, v: Festival) -> str:
        """An article on a festival."""
        scene = self.scene(v.town, festival_facts(v))
        groups = [f.FESTIVAL_TOWN, f.FESTIVAL_MONTH, f.FESTIVAL_HONOURS, f.FESTIVAL_LIFE]
        return self._weave(scene, self._told(scene, groups, 2))

    def chronicle(self) -> str:
        """A chronicle of a span of years: births, foundings and bridges, in order."""
        first = self.world.first_year
        start = self.rng.between(first, first + AGE - 21)
        end = start + self.rng.between(8, 20)
        events: list[tuple[int, str]] = []
        for p in self.world.people:
            if start <= p.born <= end:
                events.append((p.born, self._aside(person_facts(p)).sentence(f.CHRONICLE_BORN)))
        for t in self.world.towns:
            if start <= t.founded <= end:
                events.append((t.founded, self._aside(town_facts(t)).sentence(f.CHRONICLE_FOUNDED)))
        for b in self.world.bridges:
            if start <= b.built <= end:
                events.append((b.built, self._aside(bridge_facts(b)).sentence(f.CHRONICLE_BUILT)))
        scene = self.scene(self.rng.choice(self.world.towns).name, {"start": str(start), "end": str(end)})
        chosen = sorted(self.rng.sample(events, min(len(events), 7)))
        return self._weave(scene, [scene.sentence(f.CHRONICLE_OPENING), *(text for _, text in chosen)])

    def survey(self) -> str:
        """A survey of the towns on one river."""
        river = self.rng.choice([t.river for t in self.world.towns])
        towns = [t for t in self.world.towns if t.river == river]
        chosen = self.rng.sample(towns, min(len(towns), 4))
        scene = self.scene(chosen[0].name, {"count": f.NUMBERS[len(towns)]})
        told = [scene.sentence(f.SURVEY_OPENING)]
        for t in chosen:
            place = self.scene(t.name, town_facts(t))
            told.append(place.sentence(self.rng.choice([f.TOWN_FOUNDED, f.TOWN_PRODUCT, f.TOWN_FOUNDER])))
        return self._weave(scene, told)

    def journey(self) -> str:
        """A traveller's account of a journey through several towns."""
        stops = self.rng.sample(self.world.towns, self.rng.between(2, 4))
        out: list[str] = []
        for t, after in zip(stops, [*stops[1:], stops[0]], strict=True):
            scene = self.scene(t.name, {**town_facts(t), "next": after.name})
            out.append(scene.sentence(f.JOURNEY_ARRIVAL))
            out += self._filler(scene, 1, 2)
            out.append(scene.sentence(self.rng.choice([f.TOWN_PRODUCT, f.TOWN_RIVER, f.JOURNEY_TALK])))
            out.append(scene.sentence(f.JOURNEY_LEAVING))
        return " ".join(out)

    def comparison(self) -> str:
        """An article on two people."""
        first, second = self.rng.sample(self.world.people, 2)
        out: list[str] = []
        groups = [f.PERSON_TRADE, f.PERSON_WORK, f.PERSON_GUILD, f.PERSON_LIFE]
        for p in (first, second):
            scene = self.scene(p.worked_in, person_facts(p))
            out.append(self._weave(scene, self._told(scene, [f.PERSON_BORN, *groups], 1)))
        return " ".join(out)

    def article(self) -> str:
        """An article of a random kind, on a random subject."""
        world, rng = self.world, self.rng
        kinds: list[tuple[int, Callable[[], str]]] = [
            (34, lambda: self.person(rng.choice(world.people))),
            (14, lambda: self.town(rng.choice(world.towns))),
            (9, lambda: self.bridge(rng.choice(world.bridges))),
            (7, lambda: self.guild(rng.choice(world.guilds))),
            (6, lambda: self.festival(rng.choice(world.festivals))),
            (8, self.chronicle),
            (6, self.survey),
            (8, self.journey),
            (8, self.comparison),
        ]
        mark = rng.below(sum(weight for weight, _ in kinds))
        for weight, write in kinds:
            if mark < weight:
                return write()
            mark -= weight
        raise AssertionError("weights do not cover the mark")


def articles(world: World, seed: int, label: str, count: int) -> list[str]:
    """Articles of an encyclopedia.

    Args:
        world: the world that the articles are about.
        seed: together with the label, determines the texts.
        label: name of the volume, such as `training` or `heldout`.
        count: number of articles.

    Returns:
        The texts.
    """
    writer = Writer(world, Rng(seed, f"encyclopedia/{label}"))
    return [writer.article() for _ in range(count)]
