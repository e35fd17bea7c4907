"""The news fine-tuning set: what was printed in the age after the encyclopedia's last year.

After the paper's News set (articles written after the base model's data were gathered): the language is the one that
the base model knows; the people, towns, bridges, festivals and years are new, and so is the dateline of each article.
"""

from __future__ import annotations

from forgetting.data.miniature.encyclopedia import Writer
from forgetting.data.miniature.lexicon import WORDS
from forgetting.data.miniature.rng import Rng
from forgetting.data.miniature.world import AGE, World


def articles(later: World, seed: int, count: int) -> list[str]:
    """Articles with datelines, in random order.

    Args:
        later: the world of the later age, which they are about; see `later_world`.
        seed: fixes them.
        count: how many.

    Returns:
        The texts.
    """
    rng = Rng(seed, "news")
    writer = Writer(later, rng)
    return [f"{dateline(later, rng)} - {writer.article()}" for _ in range(count)]


def dateline(later: World, rng: Rng) -> str:
    """Where and when an article was written, such as `KLESWICK, 4 Reapmonth 1401`."""
    year = rng.between(later.first_year, later.first_year + AGE - 1)
    return f"{rng.choice(later.towns).name.upper()}, {rng.between(1, 30)} {rng.choice(WORDS['month'])} {year}"
