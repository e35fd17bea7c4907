"""Counts the parameters of a model and of a LoRA on it from the model's configuration, without its weights.

The model is built on torch's meta device, which allocates no memory. Imports torch and transformers only when called.
"""

from __future__ import annotations

from dataclasses import dataclass

from forgetting.errors import UsageError

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class Counted:
    """Parameters of a model.

    Attributes:
        model_params: number of all parameters.
        params_per_rank: parameters of a LoRA of rank 1: the target modules' numbers of inputs and outputs, summed.
        modules: number of target modules.
    """

    model_params: int
    params_per_rank: int
    modules: int


def count_model(name: str, targets: tuple[str, ...] = (ALL_LINEAR,)) -> Counted:
    """Count the parameters of a model and of a LoRA on it.

    Args:
        name: a folder with a config.json, or a Hub id.
        targets: module names as for PEFT (`q_proj`, `v_proj`), or `all-linear` for every linear module except the
            output head, as in the paper and PEFT.

    Raises:
        UsageError: no usable configuration, or no linear module has such a name.
        ForgettingError: the Hub cannot be reached.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from forgetting.config.schema import ModelConfig
    from forgetting.models.failures import CodeNeededError, explained
    from forgetting.models.loading import architecture

    try:
        config = architecture(ModelConfig(source=name))
        with explained(f"model '{name}'", "no usable configuration"), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except CodeNeededError:
        raise UsageError(
            f"model '{name}': needs Python code that comes with it, which is not run just to count parameters; "
            "give params (--params)"
        ) from None
    head = model.get_output_embeddings()
    linear = {
        path: (int(module.weight.shape[0]), int(module.weight.shape[1]))
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
        if module is not head
    }
    chosen = [
        shape
        for path, shape in linear.items()
        if ALL_LINEAR in targets or any(path == t or path.endswith(f".{t}") for t in targets)
    ]
    if not chosen:
        names = sorted({path.rsplit(".", 1)[-1] for path in linear})
        raise UsageError(f"'{name}' has no linear module called {', '.join(targets)}; it has {', '.join(names)}")
    total = sum(p.numel() for p in model.parameters())
    return Counted(int(total), sum(a + b for a, b in chosen), len(chosen))
