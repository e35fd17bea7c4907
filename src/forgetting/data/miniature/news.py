"""The news fine-tuning set: articles from the age after the encyclopedia's last year.

It imitates the paper's News set (articles written after the base model's data were collected). The base model knows
the language; the people, towns, bridges, festivals and years are new to it, and so are the datelines.
"""

from __future__ import annotations

from forgetting.data.miniature.encyclopedia import Writer
from forgetting.data.miniature.lexicon import WORDS
from forgetting.data.miniature.rng import Rng
from forgetting.data.miniature.world import AGE, World


def articles(later: World, seed: int, count: int) -> list[str]:
    """Articles with datelines, in random order.

    Args:
        later: the world of the later age; see `later_world`.
        seed: determines the texts.
        count: number of articles.

    Returns:
        The texts.
    """
    rng = Rng(seed, "news")
    writer = Writer(later, rng)
    return [f"{dateline(later, rng)} - {writer.article()}" for _ in range(count)]


def dateline(later: World, rng: Rng) -> str:
    """Place and date of an article, such as `KLESWICK, 4 Reapmonth 1401`."""
    year = rng.between(later.first_year, later.first_year + AGE - 1)
    return f"{rng.choice(later.towns).name.upper()}, {rng.between(1, 30)} {rng.choice(WORDS['month'])} {year}"
