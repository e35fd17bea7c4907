"""BibTeX of what a study used: the laws always, methods and optimisers where the configuration names them."""

from __future__ import annotations

from dataclasses import dataclass

from forgetting.config import StudyConfig


@dataclass(frozen=True)
class Citation:
    """One work: what it is cited for, its address, its BibTeX."""

    why: str
    title: str
    url: str
    bibtex: str


def _arxiv(key: str, author: str, title: str, year: int, number: str) -> str:
    fields = {
        "author": author,
        "title": f"{{{title}}}",
        "year": str(year),
        "eprint": number,
        "archivePrefix": "arXiv",
        "url": f"https://arxiv.org/abs/{number}",
    }
    body = "\n".join(f"  {name:<13} = {{{value}}}," for name, value in fields.items())
    return f"@misc{{{key},\n{body}\n}}"


def _cite(why: str, key: str, author: str, title: str, year: int, number: str) -> Citation:
    return Citation(why, title, f"https://arxiv.org/abs/{number}", _arxiv(key, author, title, year, number))


LAWS = _cite(
    "the forgetting loss, the laws (Eq. 4–6) and the design of the study",
    "kalajdzievski2024forgetting",
    "Kalajdzievski, Damjan",
    "Scaling Laws for Forgetting When Fine-Tuning Large Language Models",
    2024,
    "2401.05605",
)
ERRORS = _cite(
    "standard errors clustered by document",
    "miller2024errorbars",
    "Miller, Evan",
    "Adding Error Bars to Evals: A Statistical Approach to Language Model Evaluations",
    2024,
    "2411.00640",
)
LORA = _cite(
    "LoRA",
    "hu2021lora",
    "Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean and "
    "Wang, Lu and Chen, Weizhu",
    "LoRA: Low-Rank Adaptation of Large Language Models",
    2021,
    "2106.09685",
)
RSLORA = _cite(
    "the rank-stabilised scale of LoRA",
    "kalajdzievski2023rslora",
    "Kalajdzievski, Damjan",
    "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
    2023,
    "2312.03732",
)
IA3 = _cite(
    "IA³",
    "liu2022ia3",
    "Liu, Haokun and Tam, Derek and Muqeeth, Mohammed and Mohta, Jay and Huang, Tenghao and Bansal, Mohit and "
    "Raffel, Colin",
    "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
    2022,
    "2205.05638",
)
ADAFACTOR = _cite(
    "the optimiser",
    "shazeer2018adafactor",
    "Shazeer, Noam and Stern, Mitchell",
    "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
    2018,
    "1804.04235",
)
ADAMW = _cite(
    "the optimiser",
    "loshchilov2019adamw",
    "Loshchilov, Ilya and Hutter, Frank",
    "Decoupled Weight Decay Regularization",
    2017,
    "1711.05101",
)


def citations(config: StudyConfig) -> list[Citation]:
    """What a paper that reports this study should cite."""
    names = {method.name for method in config.methods}
    scalings = {str(method.options.get("scaling", "")) for method in config.methods}
    works = [LAWS]
    if "lora" in names:
        works.append(LORA)
    if any(scaling.startswith("rank") for scaling in scalings):
        works.append(RSLORA)
    if "ia3" in names:
        works.append(IA3)
    works.append(ADAFACTOR if config.training.optimizer == "adafactor" else ADAMW)
    return [*works, ERRORS]
