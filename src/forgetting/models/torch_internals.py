"""What is used of torch that it does not document, in one place: what an upgrade may break."""

from __future__ import annotations

from .private_names import PrivateName

NO_PLAN = "the memory of a pass is told by a formula and not counted"
FAKE = PrivateName(
    # a mode within which tensors have all but their content, and operations on them give such tensors
    "torch",
    "torch._subclasses.fake_tensor:FakeTensorMode",
    NO_PLAN,
    "2.13.0",
)
DISPATCH = PrivateName(
    # base of a mode that sees each operation below autograd, those of the backward pass too
    "torch",
    "torch.utils._python_dispatch:TorchDispatchMode",
    NO_PLAN,
    "2.13.0",
)
NAMES = (FAKE, DISPATCH)
