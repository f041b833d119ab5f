"""``python -m examples.train_tiny_shapes all --out DIR``: train the bundled model, or repeat one step of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from transformers import Qwen2Tokenizer, Qwen3Model

from examples.train_tiny_shapes.latents import encode_pictures, load_latents, save_latents
from examples.train_tiny_shapes.packing import pack
from examples.train_tiny_shapes.plan import FULL, SMOKE, Phase, Plan
from examples.train_tiny_shapes.tokenizer import train_tokenizer
from examples.train_tiny_shapes.transformer import Denoiser, Sampler, build_denoiser, train_phase
from examples.train_tiny_shapes.vae import train_vae


@dataclass(frozen=True, slots=True)
class Workshop:
    """One folder in which every step leaves what the next ones need."""

    out: Path
    plan: Plan

    def tokenizer(self) -> None:
        train_tokenizer(self.plan.tokenizer_captions).save_pretrained(self.out / "tokenizer")

    def vae(self) -> None:
        train_vae(self.plan).save_pretrained(self.out / "vae")

    def latents(self) -> None:
        folder, vae, rng = self.out / "latents", self._vae(), Random(7)
        folder.mkdir(exist_ok=True)
        for size, count in self.plan.latents.items():
            save_latents(folder, size, encode_pictures(vae, size, count, rng))

    def first(self) -> None:
        torch.manual_seed(0)
        self._train(build_denoiser(len(self._tokenizer())), self.plan.first, "first")

    def second(self) -> None:
        self._train(self._denoiser("first"), self.plan.second, "second")

    def pack(self) -> None:
        pack(self.out / "model", self._tokenizer(), self._vae(), self._denoiser("second"))

    def _train(self, denoiser: Denoiser, phase: Phase, name: str) -> None:
        data = {size: load_latents(self._result("latents"), size) for size in phase.size_weights}
        train_phase(denoiser, Sampler(data, self._tokenizer(), phase, self.plan.batch_at_128), phase)
        denoiser.text_encoder.save_pretrained(self.out / name / "text_encoder")
        denoiser.transformer.save_pretrained(self.out / name / "transformer")

    def _tokenizer(self) -> Qwen2Tokenizer:
        return Qwen2Tokenizer.from_pretrained(self._result("tokenizer"))

    def _vae(self) -> AutoencoderKL:
        return AutoencoderKL.from_pretrained(self._result("vae")).to(memory_format=torch.channels_last)

    def _denoiser(self, name: str) -> Denoiser:
        folder = self._result(name)
        transformer = ZImageTransformer2DModel.from_pretrained(folder / "transformer")
        return Denoiser(Qwen3Model.from_pretrained(folder / "text_encoder"), transformer)

    def _result(self, step: str) -> Path:
        if not (self.out / step).is_dir():
            sys.exit(f"{self.out} has no {step!r} yet; run that step first, or all of them")
        return self.out / step


STEPS: dict[str, Callable[[Workshop], None]] = {
    "tokenizer": Workshop.tokenizer,
    "vae": Workshop.vae,
    "latents": Workshop.latents,
    "first": Workshop.first,
    "second": Workshop.second,
    "pack": Workshop.pack,
}
"""In the order in which they build on each other."""


def main() -> None:
    arguments = _parser().parse_args()
    plan = SMOKE if arguments.smoke else FULL
    if arguments.minutes is not None:
        plan = plan.within(arguments.minutes * 60)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    workshop = Workshop(arguments.out, plan)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in STEPS if arguments.step == "all" else [arguments.step]:
        print(f"{name} ...", flush=True)
        STEPS[name](workshop)
    print(f"The results are in {arguments.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.train_tiny_shapes", description=__doc__)
    parser.add_argument("step", choices=["all", *STEPS], help="one step, or all of them in this order")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results; the model is in its model/")
    parser.add_argument("--minutes", type=minutes, help=f"training time in all, {FULL.seconds / 60:.0f} by default")
    parser.add_argument("--threads", type=int, help="CPU threads; PyTorch's choice by default")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything: the model draws noise")
    return parser


def minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a time above 0")
    return value


if __name__ == "__main__":
    main()
