"""Pretraining of the three judges: CLIP on web pairs, DINO on pixels alone, the probe on labels."""

import copy
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from torch import Tensor, nn
from torch.nn import functional as F

from dfl_utils.mini import architectures, grounding, web
from dfl_utils.mini.autoencoder import pixels
from dfl_utils.mini.training import Schedule, Training
from dfl_utils.world import scenes


def variation(scene: scenes.Scene, seed: str) -> scenes.Scene:
    """The same scene with one thing changed: another colour or category, or two things' colours swapped."""
    rng = random.Random(seed)
    things = list(scene.things)
    k = rng.randrange(len(things))
    kind = rng.choice(("colour", "category", "swap") if len(things) > 1 else ("colour", "category"))
    if kind == "swap":
        other = (k + 1) % len(things)
        things[k], things[other] = (
            replace(things[k], colour=things[other].colour),
            replace(things[other], colour=things[k].colour),
        )
    elif kind == "colour":
        things[k] = replace(things[k], colour=rng.choice(tuple(scenes.COLOURS)))
    else:
        taken = {thing.category for thing in things}
        things[k] = replace(things[k], category=rng.choice([c for c in scenes.CATEGORIES if c not in taken]))
    return replace(scene, things=tuple(things))


CLIP_STEPS = 800


def clip_batch(step: int) -> list[scenes.Scene]:
    """The scenes CLIP sees at a step: 64 of the web, then a one-change variation of each."""
    batch = [web.scene(64 * step + k) for k in range(64)]
    return batch + [variation(scene, f"variation/{step}/{k}") for k, scene in enumerate(batch)]


def train_clip(folder: Path, ground_steps: int = 500, steps: int = CLIP_STEPS):
    """Contrastive pretraining on web pairs; half of each batch of 128 are one-change variations of the other half."""
    torch.manual_seed(1)
    model, tokenizer = architectures.clip(), architectures.clip_tokenizer()
    grounding.train(folder / "grounding", model.vision_model, 128, ground_steps, seed=11)

    def loss(step: int):
        batch = clip_batch(step)
        texts = [scenes.web_caption(scene, f"clip/{step}/{k}") for k, scene in enumerate(batch)]
        tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        out = model(pixel_values=pixels([scenes.render(scene) for scene in batch]), input_ids=tokens.input_ids)
        labels = torch.arange(len(batch))
        logits = out.logits_per_image
        accuracy = (logits.argmax(1) == labels).float().mean().item()
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2, {"accuracy": accuracy}

    Training(folder / "contrastive", model, loss, Schedule(steps, lr=1e-3, weight_decay=0.05)).run()
    return model


GREY_VIEWS = 0.2


def random_views(images: Tensor, side: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Random square crops of `(B, 3, 64, 64)` covering `[low, high]` of a side, resized to `side`, with mild noise.

    A fifth of them lose their colour and the others get a faint cast (DINO's own share of grey views, Caron et al.
    2021): where colour always survives, it is all that the student learns to see.
    """
    count = len(images)
    scale = low + (high - low) * torch.rand(count, generator=generator)
    shift = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - scale)[:, None]
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    views = F.grid_sample(
        images,
        F.affine_grid(theta, [count, 3, side, side], align_corners=False),
        padding_mode="border",
        align_corners=False,
    )
    grey = torch.rand(count, 1, 1, 1, generator=generator) < GREY_VIEWS
    views = torch.where(grey, views.mean(1, keepdim=True), views)
    views = views * (0.8 + 0.4 * torch.rand(count, 3, 1, 1, generator=generator))
    brightness = 0.1 * (2 * torch.rand(count, 1, 1, 1, generator=generator) - 1)
    return views + brightness + 0.03 * torch.randn(views.shape, generator=generator)


class Student(nn.Module):
    """DINO's student: backbone and projection head; the teacher is its moving average, kept beside it."""

    HEAD = (128, 512, 128, 1024)  # input, hidden, bottleneck, output widths

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, DINOProjectionHead(*self.HEAD)
        self.loss = DINOLoss(1024, warmup_teacher_temp=0.04, teacher_temp=0.06, warmup_teacher_temp_epochs=5)
        teacher_head = DINOProjectionHead(*self.HEAD)  # weight norm forbids a deepcopy
        teacher_head.load_state_dict(self.head.state_dict())
        self.teacher = nn.ModuleList([copy.deepcopy(backbone), teacher_head]).requires_grad_(False)

    def forward(self, views: Tensor) -> Tensor:
        hidden = self.backbone(views, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        return self.head(hidden)

    @torch.no_grad()
    def teach(self, views: Tensor, momentum: float) -> Tensor:
        """Move the teacher towards the student, then embed `views` with it."""
        live = [*self.backbone.parameters(), *self.head.parameters()]
        torch._foreach_lerp_(list(self.teacher.parameters()), [p.detach() for p in live], 1 - momentum)
        return self.teacher[1](self.teacher[0](views).last_hidden_state[:, 0])


def train_dino(folder: Path, steps: int = 2000):
    """Self-distillation (DINO) on pixels alone: two wide and two narrow views of each scene, no label, no text."""
    torch.manual_seed(2)
    student = Student(architectures.dino())

    def loss(step: int):
        generator = torch.Generator().manual_seed(step)
        images = pixels([scenes.render(web.scene(64 * step + k)) for k in range(64)])
        wide = [random_views(images, 64, 0.7, 1.0, generator) for _ in range(2)]
        narrow = [random_views(images, 32, 0.4, 0.6, generator) for _ in range(2)]
        momentum = 1 - 0.008 * (1 - step / steps)
        targets = student.teach(torch.cat(wide), momentum).chunk(2)
        outputs = [*student(torch.cat(wide)).chunk(2), *student(torch.cat(narrow)).chunk(2)]
        spread = F.normalize(torch.cat(targets), dim=-1).std(0).mean().item()
        return student.loss(targets, outputs, epoch=int(10 * step / steps)), {"spread": spread}

    carried = {"center": student.loss.center} | dict(student.teacher.named_parameters())
    schedule = Schedule(steps, lr=5e-4, weight_decay=0.04, ema_decay=0.99)
    Training(folder, student, loss, schedule, carried).run()
    return student.backbone


def probe_labels(scene: scenes.Scene) -> np.ndarray:
    """Multi-hot `(59,)` float32: 48 categories, 8 colours, count 1 to 3."""
    nouns, colours = list(scenes.CATEGORIES), list(scenes.COLOURS)
    labels = np.zeros(len(nouns) + len(colours) + 3, np.float32)
    for thing in scene.things:
        labels[nouns.index(thing.category)] = 1
        labels[len(nouns) + colours.index(thing.colour)] = 1
    labels[len(nouns) + len(colours) + len(scene.things) - 1] = 1
    return labels


def train_probe(folder: Path, steps: int = 1500):
    """Supervised on scenes of its own seeds, blurred and noised at random so that drawn images are no surprise."""
    torch.manual_seed(3)
    model = architectures.probe().to(memory_format=torch.channels_last)

    def loss(step: int):
        generator = torch.Generator().manual_seed(step)
        batch = [web.scene(64 * step + k, "probe") for k in range(64)]
        images = pixels([scenes.render(scene) for scene in batch])
        blurred = F.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
        mix = torch.rand(64, 1, 1, 1, generator=generator) ** 2
        images = images + mix * (blurred - images)
        images = images + 0.15 * torch.rand(64, 1, 1, 1, generator=generator) * torch.randn(
            images.shape, generator=generator
        )
        labels = torch.from_numpy(np.stack([probe_labels(scene) for scene in batch]))
        logits = model(pixel_values=images.to(memory_format=torch.channels_last)).logits
        hit = (logits[:, :48].argmax(1)[:, None] == labels[:, :48].topk(1).indices).any(1)
        single = labels[:, -3] == 1
        return F.binary_cross_entropy_with_logits(logits, labels) * 10, {"single": hit[single].float().mean().item()}

    Training(folder, model, loss, Schedule(steps, lr=2e-3, ema_decay=0.99)).run()
    _refresh_batch_statistics(model)
    return model


@torch.no_grad()
def _refresh_batch_statistics(model: nn.Module) -> None:
    """Batch norm's running statistics, taken anew under the averaged weights."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches below
    model.train()
    for step in range(20):
        images = [scenes.render(web.scene(64 * step + k, "probe")) for k in range(64)]
        model(pixel_values=pixels(images))
    model.eval()
    for norm in norms:
        norm.momentum = 0.1
