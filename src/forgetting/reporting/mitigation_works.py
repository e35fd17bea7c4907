"""The works that mitigations come from."""

from __future__ import annotations

Work = tuple[str, str, str, int, str]
"""What it is cited for, authors, title, year, and the arXiv number or address."""

MITIGATION_WORKS: dict[str, Work] = {
    "robins1995rehearsal": (
        "replay",
        "Robins, Anthony",
        "Catastrophic Forgetting, Rehearsal and Pseudorehearsal",
        1995,
        "https://doi.org/10.1080/09540099550039318",
    ),
    "scialom2022continual": (
        "replay for language models",
        "Scialom, Thomas and Chakrabarty, Tuhin and Muresan, Smaranda",
        "Fine-tuned Language Models are Continual Learners",
        2022,
        "2205.12393",
    ),
    "li2016lwf": (
        "distillation from the model before training",
        "Li, Zhizhong and Hoiem, Derek",
        "Learning without Forgetting",
        2016,
        "1606.09282",
    ),
    "ziegler2019rlhf": (
        "the KL divergence to the base model in fine-tuning",
        "Ziegler, Daniel M. and Stiennon, Nisan and Wu, Jeffrey and Brown, Tom B. and Radford, Alec and Amodei, Dario "
        "and Christiano, Paul and Irving, Geoffrey",
        "Fine-Tuning Language Models from Human Preferences",
        2019,
        "1909.08593",
    ),
    "li2018l2sp": (
        "L2-SP",
        "Li, Xuhong and Grandvalet, Yves and Davoine, Franck",
        "Explicit Inductive Bias for Transfer Learning with Convolutional Networks",
        2018,
        "1802.01483",
    ),
    "kirkpatrick2017ewc": (
        "elastic weight consolidation",
        "Kirkpatrick, James and Pascanu, Razvan and Rabinowitz, Neil and Veness, Joel and Desjardins, Guillaume and "
        "Rusu, Andrei A. and Milan, Kieran and Quan, John and Ramalho, Tiago and Grabska-Barwinska, Agnieszka and "
        "Hassabis, Demis and Clopath, Claudia and Kumaran, Dharshan and Hadsell, Raia",
        "Overcoming Catastrophic Forgetting in Neural Networks",
        2016,
        "1612.00796",
    ),
    "kunstner2019fisher": (
        "why the Fisher information takes labels from the model",
        "Kunstner, Frederik and Balles, Lukas and Hennig, Philipp",
        "Limitations of the Empirical Fisher Approximation for Natural Gradient Descent",
        2019,
        "1905.12558",
    ),
    "wu2025stm": (
        "selective token masking",
        "Wu, Chao-Chung and Tam, Zhi Rui and Lin, Chieh-Yen and Chen, Yun-Nung and Sun, Shao-Hua and Lee, Hung-yi",
        "Mitigating Forgetting in LLM Fine-Tuning via Low-Perplexity Token Learning",
        2025,
        "2501.14315",
    ),
    "sanyal2025flow": (
        "FLOW",
        "Sanyal, Sunny and Prairie, Hayden and Das, Rudrajit and Kavis, Ali and Sanghavi, Sujay",
        "Upweighting Easy Samples in Fine-Tuning Mitigates Forgetting",
        2025,
        "2502.02797",
    ),
    "lee2019elsa": (
        "frozen bottom layers",
        "Lee, Jaejun and Tang, Raphael and Lin, Jimmy",
        "What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning",
        2019,
        "1911.03090",
    ),
    "biderman2024lora": (
        "regularisation compared with LoRA",
        "Biderman, Dan and Portes, Jacob and Gonzalez Ortiz, Jose Javier and Paul, Mansheej and Greengard, Philip and "
        "Jennings, Connor and King, Daniel and Havens, Sam and Chiley, Vitaliy and Frankle, Jonathan and Blakeney, "
        "Cody and Cunningham, John P.",
        "LoRA Learns Less and Forgets Less",
        2024,
        "2405.09673",
    ),
    "loshchilov2019adamw": (
        "decoupled weight decay",
        "Loshchilov, Ilya and Hutter, Frank",
        "Decoupled Weight Decay Regularization",
        2017,
        "1711.05101",
    ),
    "wortsman2021wiseft": (
        "interpolation towards the base model",
        "Wortsman, Mitchell and Ilharco, Gabriel and Kim, Jong Wook and Li, Mike and Kornblith, Simon and Roelofs, "
        "Rebecca and Gontijo-Lopes, Raphael and Hajishirzi, Hannaneh and Farhadi, Ali and Namkoong, Hongseok and "
        "Schmidt, Ludwig",
        "Robust Fine-Tuning of Zero-Shot Models",
        2021,
        "2109.01903",
    ),
}
"""Works by key; a mitigation's `references` contains these keys."""
