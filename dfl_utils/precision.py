"""The number type that captioner and generator infer in."""

import torch

from dfl_utils.profile import Profile

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def inference_dtype(profile: Profile) -> torch.dtype:
    """The profile's `dtype`. Judges, the probe and all training are float32 in every profile.

    Raises:
        ValueError: an unknown name, or float16 on a CPU, which has no fast arithmetic for it and lacks some of it.
    """
    if profile.dtype not in DTYPES:
        raise ValueError(f"dtype is {profile.dtype!r}: choose one of {', '.join(DTYPES)}.")
    if profile.dtype == "float16" and profile.device.startswith("cpu"):
        raise ValueError("dtype is float16, which is for GPUs: set dtype='float32' with device='cpu'.")
    return DTYPES[profile.dtype]
