#!/usr/bin/env bash
# Guess, before it was run: `beta` of diffusers' vector quantizer is the VQ-VAE paper's commitment cost: it weighs how
# far the encoder is pulled to its code, while the code is pulled to the encoder with weight one.
# Seen (diffusers 0.42.1, torch 2.14.1, Linux, CPU): the other way round. `VectorQuantizer` says legacy=True unless told,
# `VQModel` has no field to tell it, and then beta weighs the pull on the codebook: with one code in use the gradient of
# the loss in the latents is 1 / beta times the one in the code (4 at the default 0.25). Who trains a VQModel with the
# paper's recipe trains the encoder four times harder towards its codes, and the codes a quarter as hard.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check diffusers==0.42.1 torch==2.14.1 transformers==5.23.0
"$folder/env/bin/python" - <<'PY'
import inspect

import diffusers
import torch
from diffusers import VQModel
from diffusers.models.autoencoders.vq_model import VectorQuantizer


def pulls(quantize):
    """Norms of the loss's gradient in one latent and in the one code that it is assigned to."""
    latents = torch.full((1, 2, 1, 1), 0.3, requires_grad=True)
    loss = quantize(latents)[1]
    return [part.norm().item() for part in torch.autograd.grad(loss, (latents, quantize.embedding.weight))]


def ratio(beta, **options):
    torch.manual_seed(0)
    on_latent, on_code = pulls(VectorQuantizer(1, 2, beta=beta, **options))
    return on_latent / on_code


print("diffusers", diffusers.__version__)
for beta in (0.25, 2.0):
    print(f"beta {beta}: latent / code is {ratio(beta):.3f} as it comes, {ratio(beta, legacy=False):.3f} with legacy=False")
    assert abs(ratio(beta) - 1 / beta) < 1e-5 and abs(ratio(beta, legacy=False) - beta) < 1e-5
model = VQModel(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, num_vq_embeddings=16)
print("VQModel's own: beta", model.quantize.beta, "legacy", model.quantize.legacy)
assert model.quantize.legacy and "legacy" not in inspect.signature(VQModel.__init__).parameters
PY
echo "as seen"
