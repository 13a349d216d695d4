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


SHIFT = 2  # cells that a view may be moved by, along each side
GREY_VIEWS, TRUE_VIEWS = 0.2, 0.1  # the other seven tenths have their channels permuted


def random_views(images: Tensor, generator: torch.Generator) -> Tensor:
    """Views of `(B, 3, 64, 64)`: moved by whole cells, most of them without their colours, with mild noise.

    Where colour survives it is all that the student learns to see, so a fifth of the views are grey and most others
    have their channels permuted, stretched and shifted. A view moves by whole patches of the tower, as things do here.
    """
    count, side = len(images), images.shape[-1]
    room = 2 * SHIFT * scenes.CELL
    padded = F.pad(images, (room // 2,) * 4, mode="replicate")
    corners = scenes.CELL * torch.randint(0, 2 * SHIFT + 1, (count, 2), generator=generator)
    views = torch.stack([
        image[:, y : y + side, x : x + side] for image, (y, x) in zip(padded, corners.tolist(), strict=True)
    ])  # fmt: skip
    order = torch.rand(count, 3, generator=generator).argsort(1)
    gain = 0.5 + 0.5 * torch.rand(count, 3, 1, 1, generator=generator)
    bias = (1 - gain) * (2 * torch.rand(count, 3, 1, 1, generator=generator) - 1)
    permuted = gain * views.gather(1, order[:, :, None, None].expand_as(views)) + bias
    grey = gain[:, :1] * views.mean(1, keepdim=True) + bias[:, :1]
    kind = torch.rand(count, 1, 1, 1, generator=generator)
    views = torch.where(kind < GREY_VIEWS, grey, torch.where(kind < 1 - TRUE_VIEWS, permuted, views))
    return views + 0.03 * torch.randn(views.shape, generator=generator)


SINGLE = 40  # scenes of a single thing in a batch of 64; photographs that DINO learns from mostly show one, too


def dino_batch(step: int) -> list[scenes.Scene]:
    """The scenes DINO sees at a step: 40 with one thing, 24 of any kind."""
    batch = []
    for k in range(64 * step, 64 * step + SINGLE):
        tries = (web.scene(1000 * k + again, "dino") for again in range(1000))
        batch.append(next(scene for scene in tries if len(scene.things) == 1))
    return batch + [web.scene(k) for k in range(64 * step + SINGLE, 64 * step + 64)]


PROTOTYPES = 256


class Student(nn.Module):
    """DINO's student: backbone and projection head; the teacher is its moving average, kept beside it."""

    HEAD = (128, 512, 128, PROTOTYPES)  # input, hidden, bottleneck, output widths

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, self._head()
        self.loss = DINOLoss(PROTOTYPES, warmup_teacher_temp=0.04, teacher_temp=0.06, warmup_teacher_temp_epochs=5)
        teacher_head = self._head()  # weight norm forbids a deepcopy
        teacher_head.load_state_dict(self.head.state_dict())
        self.teacher = nn.ModuleList([copy.deepcopy(backbone), teacher_head]).requires_grad_(False)

    def _head(self) -> DINOProjectionHead:
        """With batch norm: without it all views look alike to a tower this small, and training never starts."""
        return DINOProjectionHead(*self.HEAD, batch_norm=True)

    def forward(self, views: Tensor) -> Tensor:
        return self.head(self.backbone(views).last_hidden_state[:, 0])

    @torch.no_grad()
    def teach(self, views: Tensor, momentum: float) -> Tensor:
        """Move the teacher towards the student, then embed `views` with it."""
        live = [*self.backbone.parameters(), *self.head.parameters()]
        torch._foreach_lerp_(list(self.teacher.parameters()), [p.detach() for p in live], 1 - momentum)
        return self.teacher[1](self.teacher[0](views).last_hidden_state[:, 0])


def train_dino(folder: Path, steps: int = 1700):
    """Self-distillation (DINO) on pixels alone: two views of each scene, no label, no text."""
    torch.manual_seed(2)
    student = Student(architectures.dino())

    def loss(step: int):
        generator = torch.Generator().manual_seed(step)
        images = pixels([scenes.render(scene) for scene in dino_batch(step)])
        views = torch.cat([random_views(images, generator) for _ in range(2)])
        targets = student.teach(views, momentum=1 - 0.01 * (1 - step / steps)).chunk(2)
        spread = F.normalize(torch.cat(targets), dim=-1).std(0).mean().item()
        return student.loss(targets, student(views).chunk(2), epoch=int(10 * step / steps)), {"spread": spread}

    carried = {"center": student.loss.center} | dict(student.teacher.named_parameters())
    schedule = Schedule(steps, lr=1e-3, weight_decay=0.04, ema_decay=0.99)
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
