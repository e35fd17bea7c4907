"""BibTeX of the works that a study uses: laws, standard errors, and its methods, mitigations and optimiser."""

from __future__ import annotations

from dataclasses import dataclass

from forgetting.config.schema import StudyConfig
from forgetting.tuning.methods import METHODS, expand_grid
from forgetting.tuning.mitigations import MITIGATIONS

from .mitigation_works import MITIGATION_WORKS


@dataclass(frozen=True)
class Citation:
    """One work: what it is cited for, its title, address and BibTeX."""

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
METHOD_WORKS: dict[str, Citation] = {
    "hu2021lora": _cite(
        "LoRA",
        "hu2021lora",
        "Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean "
        "and Wang, Lu and Chen, Weizhu",
        "LoRA: Low-Rank Adaptation of Large Language Models",
        2021,
        "2106.09685",
    ),
    "kalajdzievski2023rslora": _cite(
        "the rank-stabilised scale of LoRA",
        "kalajdzievski2023rslora",
        "Kalajdzievski, Damjan",
        "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA",
        2023,
        "2312.03732",
    ),
    "liu2024dora": _cite(
        "DoRA",
        "liu2024dora",
        "Liu, Shih-Yang and Wang, Chien-Yi and Yin, Hongxu and Molchanov, Pavlo and Wang, Yu-Chiang Frank and "
        "Cheng, Kwang-Ting and Chen, Min-Hung",
        "DoRA: Weight-Decomposed Low-Rank Adaptation",
        2024,
        "2402.09353",
    ),
    "rudiger2026mica": _cite(
        "MiCA",
        "rudiger2026mica",
        "Rüdiger, Sten and Raschka, Sebastian",
        "MiCA Learns More Knowledge Than LoRA and Full Fine-Tuning",
        2026,
        "2604.01694",
    ),
    "meng2024pissa": _cite(
        "PiSSA",
        "meng2024pissa",
        "Meng, Fanxu and Wang, Zhaohui and Zhang, Muhan",
        "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models",
        2024,
        "2404.02948",
    ),
    "buyukakyuz2024olora": _cite(
        "OLoRA",
        "buyukakyuz2024olora",
        "Büyükakyüz, Kerim",
        "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models",
        2024,
        "2406.01775",
    ),
    "yang2024corda": _cite(
        "CorDA",
        "yang2024corda",
        "Yang, Yibo and Li, Xiaojie and Zhou, Zhongzhu and Song, Shuaiwen Leon and Wu, Jianlong and Nie, Liqiang "
        "and Ghanem, Bernard",
        "CorDA: Context-Oriented Decomposition Adaptation of Large Language Models for Task-Aware "
        "Parameter-Efficient Fine-tuning",
        2024,
        "2406.05223",
    ),
    "paischer2024eva": _cite(
        "EVA",
        "paischer2024eva",
        "Paischer, Fabian and Hauzenberger, Lukas and Schmied, Thomas and Alkin, Benedikt and Deisenroth, Marc "
        "Peter and Hochreiter, Sepp",
        "Parameter Efficient Fine-tuning via Explained Variance Adaptation",
        2024,
        "2410.07170",
    ),
    "kopiczko2023vera": _cite(
        "VeRA",
        "kopiczko2023vera",
        "Kopiczko, Dawid J. and Blankevoort, Tijmen and Asano, Yuki M.",
        "VeRA: Vector-based Random Matrix Adaptation",
        2023,
        "2310.11454",
    ),
    "hyeonwoo2021fedpara": _cite(
        "LoHa's product",
        "hyeonwoo2021fedpara",
        "Hyeon-Woo, Nam and Ye-Bin, Moon and Oh, Tae-Hyun",
        "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
        2021,
        "2108.06098",
    ),
    "yeh2023lycoris": _cite(
        "LoHa and LoKr",
        "yeh2023lycoris",
        "Yeh, Shih-Ying and Hsieh, Yu-Guan and Gao, Zhidong and Yang, Bernard B. W. and Oh, Giyeong and Gong, Yanmin",
        "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation",
        2023,
        "2309.14859",
    ),
    "liu2022ia3": _cite(
        "IA³",
        "liu2022ia3",
        "Liu, Haokun and Tam, Derek and Muqeeth, Mohammed and Mohta, Jay and Huang, Tenghao and Bansal, Mohit and "
        "Raffel, Colin",
        "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
        2022,
        "2205.05638",
    ),
    "qiu2023oft": _cite(
        "OFT",
        "qiu2023oft",
        "Qiu, Zeju and Liu, Weiyang and Feng, Haiwen and Xue, Yuxuan and Feng, Yao and Liu, Zhen and Zhang, Dan and "
        "Weller, Adrian and Schölkopf, Bernhard",
        "Controlling Text-to-Image Diffusion by Orthogonal Finetuning",
        2023,
        "2306.07280",
    ),
    "qiu2025oftv2": _cite(
        "OFT's fast form",
        "qiu2025oftv2",
        "Qiu, Zeju and Liu, Weiyang and Weller, Adrian and Schölkopf, Bernhard",
        "Orthogonal Finetuning Made Scalable",
        2025,
        "2506.19847",
    ),
    "liu2023boft": _cite(
        "BOFT",
        "liu2023boft",
        "Liu, Weiyang and Qiu, Zeju and Feng, Yao and Xiu, Yuliang and Xue, Yuxuan and Yu, Longhui and Feng, Haiwen "
        "and Liu, Zhen and Heo, Juyeon and Peng, Songyou and Wen, Yandong and Black, Michael J. and Weller, Adrian "
        "and Schölkopf, Bernhard",
        "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization",
        2023,
        "2311.06243",
    ),
    "nayak2025osf": _cite(
        "OSF",
        "nayak2025osf",
        "Nayak, Nikhil Shivakumar and Killamsetty, Krishnateja and Han, Ligong and Bhandwaldar, Abhishek and "
        "Chanda, Prateek and Xu, Kai and Wang, Hao and Pareja, Aldo and Silkin, Oleg and Eyceoz, Mustafa and "
        "Srivastava, Akash",
        "Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning",
        2025,
        "2504.07097",
    ),
    "zhao2023lntuning": _cite(
        "tuning of the normalisation layers",
        "zhao2023lntuning",
        "Zhao, Bingchen and Tu, Haoqin and Wei, Chen and Mei, Jieru and Xie, Cihang",
        "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning",
        2023,
        "2312.11420",
    ),
    "benzaken2021bitfit": _cite(
        "training of the biases",
        "benzaken2021bitfit",
        "Ben Zaken, Elad and Ravfogel, Shauli and Goldberg, Yoav",
        "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
        2021,
        "2106.10199",
    ),
    "mangrulkar2022peft": Citation(
        "the library of the methods",
        "PEFT: State-of-the-art Parameter-Efficient Fine-Tuning methods",
        "https://github.com/huggingface/peft",
        "@misc{mangrulkar2022peft,\n"
        "  author        = {Mangrulkar, Sourab and Gugger, Sylvain and Debut, Lysandre and Belkada, Younes and "
        "Paul, Sayak and Bossan, Benjamin and Tietz, Marian},\n"
        "  title         = {{PEFT: State-of-the-art Parameter-Efficient Fine-Tuning methods}},\n"
        "  year          = {2022},\n"
        "  howpublished  = {\\url{https://github.com/huggingface/peft}},\n"
        "}",
    ),
}
"""Works by key; a method's `references` contains these keys."""
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
    """The works that a paper on this study should cite, each once."""
    singles = [METHODS.parse(single) for entry in config.methods for single in expand_grid(entry)]
    keys = dict.fromkeys(key for method in singles for key in method.sources())
    used = [one for entry in config.methods for together in entry.mitigations for one in together]
    mitigations = dict.fromkeys(key for one in used for key in MITIGATIONS[one.name].references)
    optimizer = ADAFACTOR if config.training.optimizer == "adafactor" else ADAMW
    works = [LAWS, *(METHOD_WORKS[key] for key in keys), *map(_mitigation_work, mitigations), optimizer, ERRORS]
    return list({work.url: work for work in works}.values())


def _mitigation_work(key: str) -> Citation:
    why, author, title, year, where = MITIGATION_WORKS[key]
    if not where.startswith("https:"):
        return _cite(why, key, author, title, year, where)
    fields = {"author": author, "title": f"{{{title}}}", "year": str(year), "url": where}
    body = "\n".join(f"  {name:<13} = {{{value}}}," for name, value in fields.items())
    return Citation(why, title, where, f"@misc{{{key},\n{body}\n}}")
