"""Reconstructions a second: our loop, one model call after another, and the bare forward passes.

All are measured in one process in interleaved rounds, so that a busy minute of the machine falls on each of them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from PIL import Image

from dfl_utils.game import loops
from dfl_utils.game.loops import Game
from dfl_utils.models.generator import Generator
from dfl_utils.models.workshop import read
from dfl_utils.store.store import RunStore
from dfl_utils.world import data, profile

CANDIDATES = 10  # captions an image, as in the loop: NoCaps has ten references an image, and they are drawn here
CAPTION_TOKENS = 16  # with the prompt; ours are 14 on average
AT_LEAST, AT_MOST = 6.0, 1.15  # targets: speed against one call a caption, time against the forward passes


def bare_passes(drawer: Generator, count: int) -> None:
    """What drawing cannot do without: guided U-Net passes and one decoding; no scheduler, no text, no Pillow."""
    unet, vae, side = drawer.pipeline.unet, drawer.pipeline.vae, drawer.image_size // drawer.pipeline.vae_scale_factor
    timestep, tokens = torch.tensor(500), drawer.pipeline.tokenizer.model_max_length
    for start in range(0, count, drawer.draw_batch):
        size = min(drawer.draw_batch, count - start)
        latents = torch.randn(2 * size, unet.config.in_channels, side, side)
        latents = latents.contiguous(memory_format=torch.channels_last)
        hidden_states = torch.randn(2 * size, tokens, unet.config.cross_attention_dim)
        with torch.no_grad():
            for _ in range(drawer.num_inference_steps):
                unet(latents, timestep, encoder_hidden_states=hidden_states, return_dict=False)
            vae.decode(latents[:size], return_dict=False)


def one_call(world: profile.Profile) -> Callable[[str, int], Image.Image]:
    """The pipeline as its documentation calls it, loaded anew so that none of our settings help or hinder it."""
    pipeline = DiffusionPipeline.from_pretrained(
        world.generator, dtype=torch.float32, local_files_only=True, use_safetensors=True, safety_checker=None
    )
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)

    def one(caption: str, seed: int = 0) -> Image.Image:
        return pipeline(
            caption,
            num_inference_steps=world.num_inference_steps,
            guidance_scale=world.guidance_scale,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]

    return one


def naive_loop(game: Game, examples: list, one: Callable[[str], Image.Image]) -> Callable[[], None]:
    """i2t2i as one would first write it: per candidate a caption, a drawing of it, and both judges' look at it.

    Captioner and judges are the game's, called on one picture at a time.
    """
    pictures = read(examples)

    def play() -> None:
        for example, picture in zip(examples, pictures, strict=True):
            for stream in loops.caption_streams(0, example.image_id, 1):
                ((text,),) = game.captioner.sample([picture], [[stream]])
                drawing = one(text)
                for judge in ("clip", "dino"):
                    game.encoder(judge).embed([picture, drawing])

    return play


def bare_loop(game: Game, count: int) -> None:
    """The passes that i2t2i cannot do without: images encoded, captions read once, `bare_passes`, judges' looks."""
    captioner, images = game.captioner, count // CANDIDATES
    side = captioner.model.config.vision_config.image_size
    with torch.no_grad():
        seen = captioner._encode(torch.randn(images, 3, side, side)).repeat_interleave(CANDIDATES, 0)
        for start in range(0, count, game.generator.draw_batch):
            part = seen[start : start + game.generator.draw_batch]
            captioner._logits(part, torch.ones(len(part), CAPTION_TOKENS, dtype=torch.long))
    bare_passes(game.generator, count)
    with torch.no_grad():
        for judge in ("clip", "dino"):
            encoder = game.encoder(judge)
            side = encoder.model.config.image_size if judge == "dino" else encoder.model.config.vision_config.image_size
            for start in range(0, count + images, 128):
                pixels = torch.randn(min(128, count + images - start), 3, side, side)
                encoder._features(pixels)


def contenders(world: profile.Profile, count: int, alone: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Name -> (the work, how many reconstructions it is)."""
    examples = data.subset(data.load(world, "nocaps", "overall"), count // CANDIDATES, seed=0)
    rows = [list(example.references[:CANDIDATES]) for example in examples]
    captions = [text for row in rows for text in row]
    seeds = [seed for example in examples for seed in loops.image_seeds(0, example.image_id, CANDIDATES)]
    scratch = tempfile.TemporaryDirectory()
    game = Game(world, RunStore(scratch.name), progress=False)

    def whole_path() -> None:
        with tempfile.TemporaryDirectory(dir=scratch.name) as folder:
            game.store = RunStore(folder)
            game.reconstruct(examples, rows)

    def all_of_it() -> None:
        with tempfile.TemporaryDirectory(dir=scratch.name) as folder:
            game.store = RunStore(folder)
            game.i2t2i(examples, CANDIDATES)

    one = one_call(world)
    few = (examples * alone)[:alone]

    return {
        "ours: Generator.draw": (lambda: game.generator.draw(captions, seeds), count),
        "(a) one call a caption": (
            lambda: [one(*pair) for pair in zip(captions[:alone], seeds[:alone], strict=True)],
            alone,
        ),
        "(b) bare forward passes": (lambda: bare_passes(game.generator, count), count),
        "ours: Game.reconstruct": (whole_path, count),
        "ours: Game.i2t2i": (all_of_it, count),
        "(c) i2t2i one by one": (naive_loop(game, few, one), alone),
        "(d) bare passes of i2t2i": (lambda: bare_loop(game, count), count),
    }


def measure(jobs: dict[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds a reconstruction, one number a round; round 0 warms up and is dropped."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, (work, count) in jobs.items():
            began = time.perf_counter()
            work()
            if turn:
                times[name].append(1000 * (time.perf_counter() - began) / count)
    return times


def summary(times: dict[str, list[float]]) -> dict[str, float]:
    """Medians over the rounds of the ratios within a round."""
    draw, alone, bare, path, whole, naive, passes = times.values()

    def ratio(over: list[float], under: list[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(over, under, strict=True)), 3)

    return {
        "draw: speed against (a)": ratio(alone, draw),
        "draw: time against (b)": ratio(draw, bare),
        "reconstruct: speed against (a)": ratio(alone, path),
        "reconstruct: time against (b)": ratio(path, bare),
        "i2t2i: speed against (c)": ratio(naive, whole),
        "i2t2i: time against (d)": ratio(whole, passes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=160, help="a round, a multiple of 10; 160 is a shard")
    parser.add_argument("--alone", type=int, default=8, help="captions that (a) draws a round")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64, help="images a call, of ours and of (b)")
    options = parser.parse_args()
    if options.captions < CANDIDATES or options.captions % CANDIDATES:
        parser.error(f"--captions must be a multiple of {CANDIDATES}, not {options.captions}")
    world = profile.load("mini", num_inference_steps=options.steps, draw_batch=options.batch)
    data.ensure(world)
    alone = min(options.alone, options.captions)
    times = measure(contenders(world, options.captions, alone), options.rounds)
    ratios = summary(times)
    for name, values in times.items():
        middle = statistics.median(values)
        spread = f"{min(values):7.1f} to {max(values):7.1f}"
        print(f"{name:26}{middle:9.1f} ms each ({spread}), {1000 / middle:7.2f} a second")
    for name, value in ratios.items():
        print(f"{name:32}{value:7.2f} x")
    print(f"targets of draw: at least {AT_LEAST:g} x the speed of (a), at most {AT_MOST:g} x the time of (b)")


if __name__ == "__main__":
    main()
