"""Elastic weight consolidation: keeps weights near the base model's, those that the general text depends on most.

Kirkpatrick et al. 2017, *Overcoming Catastrophic Forgetting in Neural Networks*, arXiv:1612.00796. The Fisher
information is the model's own (labels sampled from it), not the empirical one: Kunstner et al. 2019, arXiv:1905.12558.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from ...config.schema import RunConfig, TextConfig
from . import general
from .base import Mitigation, Situation, Takes, Term
from .l2sp import WeightPenalty, penalty_takes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ...data.windows import Windows

SALT = 3_000_003


class Ewc(Mitigation):
    """loss + weight / 2 * sum of F (W - W_base)^2, F the diagonal Fisher information on general text.

    F is per token, so weight 1 is the second-order estimate of KL(base || tuned) on that text, in nats/token, as far as
    a diagonal can express it. It is computed once per study and cached. For LoRA-type adapters it applies to the
    layers' weights and to the adapter's change of them, scale * B A, not to the factors.
    """

    name: ClassVar[str] = "ewc"
    references: ClassVar[tuple[str, ...]] = ("kirkpatrick2017ewc", "kunstner2019fisher")
    quantised: ClassVar[bool] = False

    weight: float = Field(1.0, ge=0, description="weight of the penalty in the loss; a list gives one run each")
    text: TextConfig | None = Field(
        None, description="the general text; default: the miniature's encyclopedia, in studies of the miniature"
    )
    windows: int = Field(256, ge=1, description="how many of its windows to estimate the Fisher information on")

    def general_text(self, run: RunConfig) -> TextConfig | None:
        """See `Mitigation.general_text`."""
        return general.chosen_text(self.name, self.text, run)

    def check_model(self, run: RunConfig, model: nn.Module) -> None:
        """Refuse a method that does not add to weights."""
        from .weights import weight_changes

        weight_changes(model, self.name)

    def takes(self, run: RunConfig, model: nn.Module, base: int) -> Takes:
        """The Fisher information of all weights, in addition to the penalty's memory; see `Mitigation.takes`."""
        penalty = penalty_takes(model, base)
        fisher = 4 * sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
        # during estimation: the gradients, sums of their squares, and the means of those
        return replace(penalty, held=penalty.held + fisher, before=base + 2 * fisher)

    def term(self, at: Situation) -> Term:
        """Estimate the Fisher information; see `Mitigation.term`."""
        windows = at.general.windows(general.chosen_text(self.name, self.text, at.run))
        chosen = _sample(windows, self.windows)
        at.facts[self.name] = {"windows": len(chosen), "text": chosen.fingerprint()}
        found = at.cached("fisher", [chosen.fingerprint()], lambda: diagonal_fisher(at.base.model, chosen))
        model = at.base.model
        fisher = {name: f.to(model.device) for name, f in found.items()}
        first = {id(p): name for name, p in model.named_parameters()}
        # a tied weight has several names; an adapter may be on any of them
        named = model.named_parameters(remove_duplicate=False)
        return WeightPenalty(self.name, self.weight / 2, {name: fisher[first[id(p)]] for name, p in named})


def _sample(windows: Windows, count: int) -> Windows:
    import numpy as np

    order = np.random.default_rng(SALT).permutation(len(windows))[:count]
    return windows.select(np.sort(order))


def diagonal_fisher(model: Any, windows: Windows) -> dict[str, Tensor]:
    """E[(d log p(y | context) / dW)^2] per token, y sampled from the model at each predicted position.

    One gradient per window is enough: labels of different positions are drawn independently, so products of their
    gradients average to zero, and the square of the sum estimates the sum of the squares.

    Args:
        model: the base model; gradients and modes are restored.
        windows: the contexts.

    Returns:
        By parameter name, float32 on the CPU.
    """
    import torch

    device = model.device
    generator = torch.Generator(device).manual_seed(SALT)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    training = model.training
    model.eval()
    for parameter, _ in flags:
        parameter.requires_grad_(parameter.is_floating_point())
    sums = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in model.named_parameters() if p.requires_grad}
    for index in range(len(windows)):
        ids, predicted = (torch.from_numpy(array.copy()).to(device) for array in windows.window(index))
        logits = model(input_ids=ids.long()[None], use_cache=False).logits[0, :-1][predicted[1:]].float()
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                sums[name] += parameter.grad.float().square()
        model.zero_grad(set_to_none=True)
    for parameter, flag in flags:
        parameter.requires_grad_(flag)
    model.train(training)
    return {name: (total / windows.n_predicted).cpu() for name, total in sums.items()}
