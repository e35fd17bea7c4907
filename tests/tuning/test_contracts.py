"""The contract of methods. A new method is one file and one row here."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed

from forgetting.config.schema import MethodConfig
from forgetting.models.loading import count_parameters
from forgetting.tuning.methods import METHODS, Context, Method, expand_grid
from forgetting.tuning.methods.residual import Residual

Count = Callable[[PreTrainedModel], int]


def linear(model: PreTrainedModel) -> list[torch.nn.Linear]:
    """All linear layers except the head."""
    return [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]


def total(of: Callable[[int, int], float]) -> Count:
    """The sum of a formula in inputs and outputs over all linear layers except the head."""
    return lambda model: round(sum(of(layer.in_features, layer.out_features) for layer in linear(model)))


def of_names(*parts: str) -> Count:
    """Parameters whose name contains one of the parts."""
    return lambda model: sum(p.numel() for name, p in model.named_parameters() if any(part in name for part in parts))


def kronecker(rank: int) -> Callable[[int, int], float]:
    """Widths 32 and 64 are 4 x 8 and 8 x 8: a small full matrix, and a large one that is full where r is too large."""
    parts = {32: (4, 8), 64: (8, 8)}

    def count(inputs: int, outputs: int) -> float:
        (out_small, out_large), (in_small, in_large) = parts[outputs], parts[inputs]
        large = out_large * in_large if rank >= max(out_large, in_large) / 2 else rank * (out_large + in_large)
        return out_small * in_small + large

    return count


# options; closed form of P; which model. PATH stands for a text that is not the measured one
METHOD_ROWS: list[tuple[dict[str, Any], Count, str]] = [
    ({"name": "lora", "rank": 1}, total(lambda i, o: i + o), "llama"),
    ({"name": "lora", "rank": 16, "scaling": "classic", "dropout": 0.1}, total(lambda i, o: 16 * (i + o)), "llama"),
    ({"name": "lora", "rank": 80}, total(lambda i, o: 80 * (i + o)), "llama"),
    ({"name": "lora", "target_modules": "attention"}, lambda _: 2 * 4 * 8 * (32 + 32), "llama"),
    ({"name": "lora", "target_modules": "attention"}, lambda _: 2 * 8 * (32 + 96 + 32 + 32), "gpt2"),
    ({"name": "lora", "layers": [0]}, lambda _: 8 * (4 * 64 + 3 * 96), "llama"),
    ({"name": "lora", "layers": "top-1", "target_modules": ["v_proj"]}, lambda _: 8 * 64, "llama"),
    ({"name": "dora", "rank": 4}, total(lambda i, o: 4 * (i + o) + o), "llama"),
    ({"name": "mica", "rank": 4}, total(lambda i, o: 4 * i), "llama"),
    ({"name": "pissa", "rank": 4}, total(lambda i, o: 4 * (i + o)), "llama"),
    ({"name": "pissa", "rank": 4}, lambda _: 2 * 4 * (128 + 64 + 160 + 160), "gpt2"),
    ({"name": "olora", "rank": 4}, total(lambda i, o: 4 * (i + o)), "llama"),
    ({"name": "corda", "rank": 4, "calibration": {"source": "PATH"}}, total(lambda i, o: 4 * (i + o)), "llama"),
    ({"name": "corda", "rank": 4, "keep": "nothing"}, total(lambda i, o: 4 * (i + o)), "llama"),
    ({"name": "eva", "rank": 4, "rho": 1.0}, total(lambda i, o: 4 * (i + o)), "llama"),
    ({"name": "vera", "rank": 6}, total(lambda i, o: 6 + o), "llama"),
    ({"name": "loha", "rank": 4, "alpha": 64}, total(lambda i, o: 8 * (i + o)), "llama"),
    ({"name": "lokr", "rank": 2}, total(kronecker(2)), "llama"),
    ({"name": "lokr", "rank": 8}, total(kronecker(8)), "llama"),
    ({"name": "ia3"}, lambda _: 2 * (32 + 32 + 64), "llama"),
    ({"name": "ia3", "layers": [-1]}, lambda _: 32 + 32 + 64, "llama"),
    ({"name": "ia3"}, lambda _: 2 * (96 + 128), "gpt2"),
    ({"name": "oft", "block_size": 8}, total(lambda i, o: i * 7 / 2), "llama"),
    ({"name": "boft", "block_size": 4}, total(lambda i, o: i * 4 + o), "llama"),
    ({"name": "osf"}, total(lambda i, o: min(i, o) / 2 * (i + o + 1)), "llama"),
    ({"name": "ln_tuning"}, lambda _: 5 * 32, "llama"),
    ({"name": "ln_tuning"}, lambda _: 5 * 2 * 32, "gpt2"),
    ({"name": "bias"}, of_names(".bias"), "gpt2"),
    ({"name": "top_layers", "count": 1}, of_names("layers.1."), "llama"),
    ({"name": "full"}, of_names(""), "llama"),
    (
        {"name": "peft", "config": {"peft_type": "HRA", "r": 4, "target_modules": "all-linear"}},
        total(lambda i, o: 4 * i),
        "llama",
    ),
    ({"name": "peft", "config": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}}, lambda _: 3 * 32, "llama"),
]
FAST = ("lora", "full", "ia3")
"""Methods whose contract `make test-fast` tests, too."""
MARKED = [
    pytest.param(
        options,
        count,
        kind,
        id=f"{' '.join(str(value) for value in options.values())} {kind}",
        marks=() if options["name"] in FAST else pytest.mark.full,
    )
    for options, count, kind in METHOD_ROWS
]
STEP = {"ia3": 100, "vera": 20, "ln_tuning": 20, "loha": 5, "boft": 2, "peft": 100}
"""Plain gradient descent takes larger steps for the methods with few or product parameters."""


def load(folder: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    return loaded.eval()


@pytest.fixture
def model(tiny_model: Path) -> PreTrainedModel:
    return load(tiny_model)


def method_of(options: dict[str, Any], corpora: Path | None = None) -> Method:
    """The one method of an entry; PATH in it becomes the training text."""
    if "calibration" in options:
        assert corpora is not None
        options = {**options, "calibration": {"source": str(corpora / "train.jsonl")}}
    (config,) = expand_grid(MethodConfig.model_validate(options))
    return METHODS.parse(config)


def test_every_method_has_a_row() -> None:
    assert {options["name"] for options, _, _ in METHOD_ROWS} == set(METHODS)


def saved_model(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """What was saved, on the base model as it was before training."""
    assert [f.name for f in folder.iterdir() if f.suffix in (".safetensors", ".bin", ".pt")] == [
        "adapter_model.safetensors" if (folder / "adapter_config.json").exists() else "model.safetensors"
    ]
    if (folder / "adapter_config.json").exists():
        return PeftModel.from_pretrained(base, folder).eval()
    return load(folder)


@pytest.mark.parametrize(("options", "count", "kind"), MARKED)
def test_method_contract(
    options: dict[str, Any],
    count: Count,
    kind: str,
    models: dict[str, Path],
    context: Context,
    corpora: Path,
    tmp_path: Path,
) -> None:
    ids = torch.arange(7, 23).reshape(2, 8)
    model, base = load(models[kind]), load(models[kind])
    with torch.no_grad():
        base_logits = model(input_ids=ids).logits
    expected = count(model)
    method = method_of(options, corpora)
    torch.manual_seed(context.seed)
    method.check(model, context)
    trained = method.prepare(model, context).eval()

    with torch.no_grad():
        difference = (trained(input_ids=ids).logits[:, -8:] - base_logits).abs().max()
    limit = {"exactly": 0.0, "rounding": 1e-6, "else": math.inf}[method.start]
    assert difference <= limit, "step 0 is the base model, as the method says"
    assert count_parameters(trained, trainable=True) == expected

    rate = STEP.get(options["name"], 0.5)
    optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = trained(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05, "it trains"

    with torch.no_grad():
        tuned = trained(input_ids=ids).logits
        method.save(trained, tmp_path / "saved")
        assert torch.equal(trained(input_ids=ids).logits, tuned), "saving changes nothing"
        again = saved_model(base, tmp_path / "saved")(input_ids=ids).logits
    # a method that took a part of the weights out saves the difference to them: the same but for rounding
    limit = 2e-6 if isinstance(method, Residual) else 0.0
    assert (again - tuned).abs().max() <= limit, "reloads to the same numbers"


@pytest.mark.full
@pytest.mark.parametrize("name", METHODS)
def test_a_method_starts_from_the_seed_of_the_run_alone(
    name: str, models: dict[str, Path], context: Context, corpora: Path
) -> None:
    options, kind = next((options, kind) for options, _, kind in METHOD_ROWS if options["name"] == name)

    def start(seed: int, before: int) -> list[torch.Tensor]:
        model = load(models[kind])
        torch.rand(before)  # what another run may have left behind
        set_seed(seed)
        made = method_of(options, corpora).prepare(model, dataclasses.replace(context, seed=seed))
        return [weight.detach().clone() for weight in made.state_dict().values()]

    first, second, other = start(3, 0), start(3, 1), start(4, 0)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    if name in ("lora", "dora", "loha", "lokr", "vera"):
        assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_lora_scaling_changes_what_an_adapter_adds(model: PreTrainedModel, context: Context) -> None:
    def scale(**options: Any) -> float:
        (config,) = expand_grid(MethodConfig.model_validate({"name": "lora", "alpha": 8, **options}))
        adapted = METHODS.parse(config).prepare(copy.deepcopy(model), context)
        return float(next(m.scaling["default"] for m in adapted.modules() if isinstance(m, LoraLayer)))

    assert scale(rank=16, scaling="rank-stabilized") == pytest.approx(8 / 16**0.5)
    assert scale(rank=16, scaling="classic") == pytest.approx(8 / 16)


def test_lora_target_modules_choose_the_layers(model: PreTrainedModel, context: Context) -> None:
    (config,) = expand_grid(MethodConfig.model_validate({"name": "lora", "target_modules": ["q_proj"]}))
    adapted = METHODS.parse(config).prepare(model, context)
    assert count_parameters(adapted, trainable=True) == 2 * 8 * (32 + 32)
