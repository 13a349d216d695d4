"""Reconstructions a second: our loop, the pipeline called once a caption, and the bare forward passes.

All are measured in one process in interleaved rounds, so that a busy minute of the machine falls on each of them.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from diffusers import DDPMScheduler, DiffusionPipeline

from dfl_utils import data, loops, profile, provenance
from dfl_utils.generator import Generator
from dfl_utils.loops import Game
from dfl_utils.store import RunStore

CANDIDATES = 10  # captions an image, as in the loop: NoCaps has ten references an image, and they are drawn here
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


def one_call_a_caption(world: profile.Profile, captions: list[str], seeds: list[int]) -> Callable[[], None]:
    """The pipeline as its documentation calls it, loaded anew so that none of our settings help or hinder it."""
    pipeline = DiffusionPipeline.from_pretrained(
        world.generator, dtype=torch.float32, local_files_only=True, use_safetensors=True, safety_checker=None
    )
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> None:
        for caption, seed in zip(captions, seeds, strict=True):
            pipeline(
                caption,
                num_inference_steps=world.num_inference_steps,
                guidance_scale=world.guidance_scale,
                generator=torch.Generator().manual_seed(seed),
            )

    return draw


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

    return {
        "ours: Generator.draw": (lambda: game.generator.draw(captions, seeds), count),
        "(a) one call a caption": (one_call_a_caption(world, captions[:alone], seeds[:alone]), alone),
        "(b) bare forward passes": (lambda: bare_passes(game.generator, count), count),
        "ours: Game.reconstruct": (whole_path, count),
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
    draw, alone, bare, path = times.values()

    def ratio(over: list[float], under: list[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(over, under, strict=True)), 3)

    return {
        "draw: speed against (a)": ratio(alone, draw),
        "draw: time against (b)": ratio(draw, bare),
        "reconstruct: speed against (a)": ratio(alone, path),
        "reconstruct: time against (b)": ratio(path, bare),
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
    record = {
        "date": date.today().isoformat(),
        "machine": provenance.machine() | {"threads": torch.get_num_threads()},
        "versions": provenance.versions(),
        "options": vars(options),
        "milliseconds": {name: [round(value, 2) for value in values] for name, values in times.items()},
        "ratios": ratios,
        "targets": {"at least x (a)": AT_LEAST, "at most x (b)": AT_MOST},
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
