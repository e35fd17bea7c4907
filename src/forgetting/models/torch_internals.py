"""Undocumented parts of torch that we use, collected in one place because an upgrade may break them."""

from __future__ import annotations

from .private_names import PrivateName

NO_PLAN = "the memory of a pass is estimated by a formula instead of counted"
FAKE = PrivateName(
    # a mode in which tensors, and the results of operations on them, have shapes and dtypes but no values
    "torch",
    "torch._subclasses.fake_tensor:FakeTensorMode",
    NO_PLAN,
    "2.13.0",
)
DISPATCH = PrivateName(
    # base of a mode that sees each operation below autograd, including those of the backward pass
    "torch",
    "torch.utils._python_dispatch:TorchDispatchMode",
    NO_PLAN,
    "2.13.0",
)
NAMES = (FAKE, DISPATCH)
