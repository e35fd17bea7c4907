"""What the processes of one run agree on, without starting any."""

from __future__ import annotations

import pytest
import torch

from forgetting.errors import ForgettingError
from forgetting.models import processes


def test_weights_of_any_shape_are_compared_between_processes(monkeypatch):
    """Including a parameter that is a single number: torch views a tensor without dimensions in no other dtype."""
    others: list[int] = []
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "shared", lambda sums: others or others.extend(sums) or sums)
    model = torch.nn.Module()
    for name, tensor in {"scalar": torch.tensor(0.5), "none": torch.zeros(0), "turned": torch.ones(2, 3).T}.items():
        model.register_parameter(name, torch.nn.Parameter(tensor))
    processes.check_same(model, trainable=True, when="before")
    processes.check_same(model, trainable=True, when="again")
    with torch.no_grad():
        model.get_parameter("scalar").fill_(0.75)
    with pytest.raises(ForgettingError, match="after step 7 the weights of process 0 differ"):
        processes.check_same(model, trainable=True, when="after step 7")
