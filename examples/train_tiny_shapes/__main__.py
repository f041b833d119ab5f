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

from examples.train_tiny_shapes.distillation import distil
from examples.train_tiny_shapes.latents import encode_pictures, load_latents, save_latents
from examples.train_tiny_shapes.packing import pack
from examples.train_tiny_shapes.plan import FULL, SMOKE, FlowPhase, Plan, Size
from examples.train_tiny_shapes.tokenizer import train_tokenizer
from examples.train_tiny_shapes.transformer import Denoiser, Sampler, build_denoiser, train_phase, widen
from examples.train_tiny_shapes.vae import build_vae8, train_vae


@dataclass(frozen=True, slots=True)
class Workshop:
    """One folder in which every step leaves what the next ones need."""

    out: Path
    plan: Plan

    def tokenizer(self) -> None:
        train_tokenizer(self.plan.tokenizer_captions).save_pretrained(self.out / "tokenizer")

    def vae8(self) -> None:
        vae = build_vae8()
        train_vae(vae, self.plan.vae8)
        vae.save_pretrained(self.out / "vae8")

    def latents8(self) -> None:
        self._encode(self._vae("vae8"), self.plan.latents8, "latents8")

    def first8(self) -> None:
        torch.manual_seed(0)
        self._train(build_denoiser(len(self._tokenizer())), self.plan.first8, "latents8", "first8")

    def second8(self) -> None:
        self._train(self._denoiser("first8"), self.plan.second8, "latents8", "second8")

    def inner(self) -> None:
        distil(self._vae("vae8"), self.plan.inner).save_pretrained(self.out / "inner")

    def vae(self) -> None:
        vae = self._vae("inner")
        train_vae(vae, self.plan.vae)
        vae.save_pretrained(self.out / "vae")

    def latents(self) -> None:
        self._encode(self._vae("vae"), self.plan.latents, "latents")

    def first(self) -> None:
        torch.manual_seed(0)
        channels = self._vae("vae").config.latent_channels
        self._train(widen(self._denoiser("second8"), channels), self.plan.first, "latents", "first")

    def second(self) -> None:
        self._train(self._denoiser("first"), self.plan.second, "latents", "second")

    def pack(self) -> None:
        pack(self.out / "model", self._tokenizer(), self._vae("vae"), self._denoiser("second"), self.plan.second.shift)

    def _encode(self, vae: AutoencoderKL, pictures: dict[Size, int], name: str) -> None:
        folder, rng = self.out / name, Random(7)
        folder.mkdir(exist_ok=True)
        for size, count in pictures.items():
            save_latents(folder, size, encode_pictures(vae, size, count, rng))

    def _train(self, denoiser: Denoiser, phase: FlowPhase, latents: str, name: str) -> None:
        data = {size: load_latents(self._result(latents), size) for size in phase.sizes}
        train_phase(denoiser, Sampler(data, self._tokenizer(), phase), phase)
        denoiser.text_encoder.save_pretrained(self.out / name / "text_encoder")
        denoiser.transformer.save_pretrained(self.out / name / "transformer")

    def _tokenizer(self) -> Qwen2Tokenizer:
        return Qwen2Tokenizer.from_pretrained(self._result("tokenizer"))

    def _vae(self, name: str) -> AutoencoderKL:
        return AutoencoderKL.from_pretrained(self._result(name)).to(memory_format=torch.channels_last)

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
    "vae8": Workshop.vae8,
    "latents8": Workshop.latents8,
    "first8": Workshop.first8,
    "second8": Workshop.second8,
    "inner": Workshop.inner,
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
