"""Linear layers through oneDNN on a CPU, as a model's convolutions go already.

torch sends them through MKL, which on an AMD processor is half as fast. The operator is the one of torch.compile, and
the pinned torch has it without gradients only: this is for models that are frozen.
"""

import types

import torch
from torch import Tensor, nn


def _linear(self: nn.Linear, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def use_onednn(model: nn.Module) -> nn.Module:
    """Reroute every linear layer of a frozen fp32 model; a model on another device, or a torch without it, stays.

    Results differ from MKL's in the last bits.
    """
    if torch.backends.mkldnn.is_available():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.weight.device.type == "cpu":
                module.forward = types.MethodType(_linear, module)
    return model
