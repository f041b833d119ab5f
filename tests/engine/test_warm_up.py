"""Warm-ups read what the roles before made in theirs, or what configurations tell, and never a guess."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from stage_server.engine import diffusers_engine, trials
from stage_server.engine.base import LoadError
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.forms import form_of
from wire.types import REQUIRED, Role
from wire.values import Tensor, Value

ALL = ["z-image", "flux", "flux2-klein", "krea-2", "stable-diffusion-3", "stable-diffusion-xl", "qwen-image"]


def form(value: Value) -> object:
    """Everything but what depends on the length of a prompt and on the axes' order in memory."""
    if isinstance(value, Tensor):
        width = value.shape[-1] if "float" in value.dtype else 0
        return value.dtype, len(value.shape), width
    return [form(item) for item in value] if isinstance(value, list) else type(value)


@pytest.mark.parametrize("family", ALL)
def test_stand_ins_have_the_form_of_what_encoders_make(family: str, model_folder: Callable[[str], str]) -> None:
    engine, seen = DiffusersEngine(model_folder(family)), {}
    real = diffusers_engine.run_stage

    def run_stage(pipeline, task, *rest):  # type: ignore[no-untyped-def]
        seen.setdefault(task.role, []).append(task.inputs)
        return real(pipeline, task, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusers_engine, "run_stage", run_stage)
        engine.set_roles(frozenset({Role.DIT, Role.DECODER}))
        engine.set_roles(frozenset({Role.ENCODER}))
        engine.set_roles(frozenset({Role.DIT, Role.DECODER}))

    for role in (Role.DIT, Role.DECODER):
        stand_ins, made = seen[role]
        assert made.keys() <= stand_ins.keys() | {"height", "width"}  # without guidance, nothing negative is made
        assert {name: form(stand_ins[name]) for name in made} == {name: form(value) for name, value in made.items()}
    assert len(seen[Role.ENCODER]) == 1


@pytest.mark.parametrize("roles", [frozenset({Role.DIT}), frozenset(REQUIRED)])
def test_the_dit_of_a_model_that_only_edits_is_warmed_up(
    roles: frozenset[Role], model_folder: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    engine = DiffusersEngine(model_folder("qwen-image-edit"))
    engine.set_roles(roles)
    assert Role.DIT in engine._trials.made
    assert "not warmed up" not in caplog.text


def test_a_role_whose_inputs_nobody_knows_is_announced_cold(
    model_folder: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = DiffusersEngine(model_folder("flux"))
    monkeypatch.setattr("stage_server.engine.geometry.Geometry.stand_in", lambda *_: None)
    with caplog.at_level(logging.WARNING):
        engine.set_roles(frozenset({Role.DIT}))
    assert engine.roles == {Role.DIT}
    assert "the dit is not warmed up, as what it reads is not known here" in caplog.text
    engine.set_roles(frozenset({Role.ENCODER}))
    caplog.clear()
    engine.set_roles(frozenset({Role.DIT}))  # now it is known
    assert "not warmed up" not in caplog.text


def test_stand_ins_that_an_unknown_family_refuses_say_nothing_about_the_role(
    model_folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("stage_server.engine.geometry.Geometry.stand_in", lambda *_: torch.zeros(3))
    with pytest.raises(LoadError, match="cannot run the role dit here"):
        DiffusersEngine(model_folder("flux")).set_roles(frozenset({Role.DIT}))
    monkeypatch.setattr(trials, "TESTED_FAMILIES", frozenset())
    engine = DiffusersEngine(model_folder("flux"))
    engine.set_roles(frozenset({Role.DIT}))
    assert "the dit is not warmed up, it refused stand-ins: " in caplog.text
    engine._trials.made[Role.DIT] = {Role.DECODER: {"latents": 3}}
    with pytest.raises(LoadError, match="cannot run the role decoder here"):  # for what it reads was made here
        engine.set_roles(frozenset({Role.DECODER}))


@pytest.mark.parametrize(
    ("family", "guess"),
    [("flux", lambda *_: torch.zeros(3)), ("stable-diffusion-xl", lambda *_: None)],
    ids=["wrong", "none"],
)
def test_what_other_servers_made_goes_before_a_guess(
    family: str,
    guess: Callable[..., object],
    model_folder: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each role is elsewhere: what they know of each other is what they have been told."""
    monkeypatch.setattr("stage_server.engine.geometry.Geometry.stand_in", guess)
    told: dict[Role, bytes] = {}
    for role in REQUIRED:
        engine = DiffusersEngine(model_folder(family))
        engine.forms.learn(told)
        engine.set_roles(frozenset({role}))
        assert role in engine._trials.made
        told |= engine.forms.seen()
    assert told.keys() == set(REQUIRED)
    assert "not warmed up" not in caplog.text


def test_what_was_made_of_a_guess_is_told_to_nobody(model_folder: Callable[[str], str]) -> None:
    engine = DiffusersEngine(model_folder("flux"))
    engine.set_roles(frozenset({Role.DIT}))
    assert Role.DIT in engine._trials.made
    assert engine.forms.seen() == {}


def test_what_others_told_wrongly_costs_no_role(
    model_folder: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    engine = DiffusersEngine(model_folder("flux"))
    wrong: dict[str, Value] = {"prompt_embeds": 3, "pooled_prompt_embeds": "no tensor"}
    form = form_of({Role.DIT: wrong})
    assert form is not None
    engine.forms.learn({Role.ENCODER: form})
    engine.set_roles(frozenset({Role.DIT}))
    assert Role.DIT in engine._trials.made, "warmed up with what the configurations tell"
    assert "it refused what others told of its inputs" in caplog.text
    assert engine.forms.seen() == {}, "of a guess"
