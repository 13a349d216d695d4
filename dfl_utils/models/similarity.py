"""Image similarity: cosines of CLIP's and DINO's image embeddings (Appendix A.1), and of EfficientNet-Lite0's."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, CLIPModel, TimmWrapperForImageClassification, ViTModel

from dfl_utils.models import checkpoint
from dfl_utils.world.profile import Profile

VERSION = 1  # of the embeddings that the same image and files give; part of every key that names an encoder
EMBED_BATCH = 128  # images a forward pass, and their pixels: DINO at 384 px reads 2,305 tokens an image
EMBED_PIXELS = EMBED_BATCH * 224**2


class ImageEncoder:
    """Images -> unit vectors. `features` makes features `(B, D)` of preprocessed pixels `(B, 3, H, W)`."""

    def __init__(self, model, processor, features: Callable[[Tensor], Tensor], batch_size: int = EMBED_BATCH):
        self.model, self.processor, self._features, self.batch_size = model, processor, features, batch_size

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image] | np.ndarray, *, normalize: bool = True) -> np.ndarray:
        """Embeddings `(B, D)` float32 of RGB images (Pillow, or uint8 `(B, H, W, 3)`), L2-normalised or as they come.

        ValueError: one that is not finite.
        """
        parts = []
        for start in range(0, len(images), self.batch_size):
            batch = [
                image if isinstance(image, Image.Image) else Image.fromarray(image)
                for image in images[start : start + self.batch_size]
            ]
            pixels = self.processor(batch, return_tensors="pt").pixel_values.to(self.model.device)
            features = self._features(pixels)
            parts.append((F.normalize(features, dim=-1) if normalize else features).float().cpu())
        return checkpoint.require_finite(torch.cat(parts).numpy(), "The embedding of an image", self.model.name_or_path)

    def features(self, images: Sequence[Image.Image] | np.ndarray) -> np.ndarray:
        """As `embed`, of no certain length: what `fidelity.Extractor.features` are, without logits."""
        return self.embed(images, normalize=False)


def load_clip(profile: Profile) -> ImageEncoder:
    """CLIP's image embedding, projected unless the profile says not; of an image that is not square, of its middle."""
    model, _ = checkpoint.load(CLIPModel, profile, "clip")
    side = model.config.vision_config.image_size
    processor = _processor(profile, profile.clip, do_center_crop=True, crop_size={"height": side, "width": side})
    look = model.get_image_features if profile.clip_projected else model.vision_model
    return ImageEncoder(model, processor, lambda pixels: look(pixel_values=pixels).pooler_output)


def load_dino(profile: Profile) -> ImageEncoder:
    """DINO's class token at the profile's `dino_size`."""
    model, _ = checkpoint.load(ViTModel, profile, "dino", add_pooling_layer=False)
    side = profile.dino_size
    processor = _processor(profile, profile.dino, size={"height": side, "width": side})

    def class_token(pixels: Tensor) -> Tensor:
        return model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]

    return ImageEncoder(model, processor, class_token, min(EMBED_BATCH, max(1, EMBED_PIXELS // side**2)))


def load_efficientnet(profile: Profile) -> ImageEncoder:
    """EfficientNet-Lite0's 1,280 features before its last layer: it learned from ImageNet's photographs and labels."""
    model, _ = checkpoint.load(TimmWrapperForImageClassification, profile, "efficientnet")
    net = model.timm_model

    def before_logits(pixels: Tensor) -> Tensor:
        return net.forward_head(net.forward_features(pixels), pre_logits=True)

    return ImageEncoder(model, _processor(profile, profile.efficientnet), before_logits)


def _processor(profile: Profile, model: str, **options):
    folder, place = checkpoint.source(profile, model)
    with checkpoint.opening(folder, place["revision"]):
        return AutoImageProcessor.from_pretrained(folder, backend="pil", **place, **options)


ENCODERS = {"clip": load_clip, "dino": load_dino, "efficientnet": load_efficientnet}


def cosine(originals: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Cosines of unit vectors: `(images, D)` and `(images, N, D)` -> `(images, N)` in [-1, 1]."""
    return np.einsum("id,ind->in", originals, candidates)
