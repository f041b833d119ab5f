"""Options, and how a server is put together from them, in this process."""

from __future__ import annotations

import re

import pytest

from stage_server.command_line import InvalidSettings
from stage_server.data.holder import BindError
from stage_server.engine.base import LoadError
from stage_server.profiling.settings import ignored_variables
from stage_server.runtime.control import BadEndpoint
from stage_server.settings import Settings, read_settings
from stage_server.startup import assembled
from wire.types import REQUIRED, Role

GATEWAY = ("--gateway", "tcp://127.0.0.1:5600", "--connect-timeout", "0.1")
EMULATED = ("--engine", "emulated", "--profile", "tiny-shapes-cpu", "--time-scale", "0.001")


def read(*options: str) -> Settings:
    return read_settings([*GATEWAY, *EMULATED, *options])


def test_roles_are_a_set_however_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = REQUIRED
    assert read("--role", "decoder,dit", "--role", "encoder").role == everything
    monkeypatch.setenv("DISAGFUSION_STAGE_ROLE", "dit,encoder,decoder")
    assert read().role == everything


def test_adapters_are_repeated_or_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ["--gateway", "tcp://127.0.0.1:5600", "--role", "dit", "--model", "tiny-shapes"]
    given = read_settings([*real, "--adapter", "a=x", "--adapter", "b=org/repo@main:y.safetensors"])
    assert given.adapter == ("a=x", "b=org/repo@main:y.safetensors")
    monkeypatch.setenv("DISAGFUSION_STAGE_ADAPTER", "a=x, b=y")
    assert read_settings(real).adapter == ("a=x", "b=y")
    with pytest.raises(InvalidSettings, match="--adapter and --adapters-folder belong to --engine diffusers"):
        read("--role", "dit")


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISAGFUSION_STAGE_NAME", "environment")
    monkeypatch.setenv("DISAGFUSION_STAGE_PIN", "true")
    assert (read("--role", "dit").name, read("--role", "dit").pin) == ("environment", True)
    settings = read("--role", "dit", "--name", "line", "--no-pin")
    assert (settings.name, settings.pin) == ("line", False)


def test_every_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        read_settings(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in text for name in Settings.model_fields)
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "--role: is missing"),
        (("--role", "painter"), "--role: 'painter' is no role; enhancer, encoder, dit, decoder, upscaler are"),
        (("--role", "dit", "--gateway", "localhost"), "--gateway: 'localhost' is no address; write tcp://HOST:PORT"),
        (
            ("--role", "dit", "--data-bind", "nonsense"),
            "--data-bind: 'nonsense' is no address; write tcp://HOST:PORT, or . for any port",
        ),
        (("--role", "dit", "--data-bind", ""), "--data-bind: "),
        (("--role", "dit", "--time-scale", "0"), "--time-scale: "),
        (("--role", "dit", "--engine", "diffusers"), "belong to --engine emulated"),
        (("--role", "dit", "--profile", ""), "add --profile FILE"),
        (("--role", "dit", "--upscaler", "x"), "an emulation has one where its profile has a section"),
        (("--role", "dit", "--curve-gateway-key", "x"), "encryption needs all of"),
        (("--role", "dit", "--may-take", "encoder,decoder"), "--role dit is not among those of --may-take encoder,dec"),
        (("--role", "dit", "--may-load", "other=sd3-l20", "--pin"), "leave one of them out"),
        (("--role", "dit", "--may-load", "other="), "names no model: write"),
        (("--role", "dit", "--may-load", "sd3-l20", "--may-load", "sd3-l20"), "names a model twice"),
        (("--role", "dit", *(f"--may-load=m{n}=sd3-l20" for n in range(4))), "--may-load: "),
    ],
)
def test_what_cannot_be_meant(options: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(InvalidSettings, match=complaint):
        read(*options)


@pytest.mark.parametrize(
    ("options", "error", "complaint"),
    [
        (("--profile", "nowhere"), InvalidSettings, "'nowhere' is no file, nor one of the bundled .*tiny-shapes-cpu"),
        (("--data-bind", "tcp://0.0.0.0:*"), BindError, "can be reached from other machines"),
        (
            ("--ready-file", "/nowhere/ready"),
            InvalidSettings,
            "--ready-file /nowhere/ready cannot be made: No such file",
        ),
        (("--data-bind", "tcp://*:*", "--insecure"), InvalidSettings, "--data-advertise"),
        (("--store-bytes", "70000"), LoadError, "raise --store-bytes"),
        (("--gateway", "tcp://a b:1"), BadEndpoint, "is no address of a gateway"),
        (("--may-load", "tiny-shapes=sd3-l20"), InvalidSettings, "have one name: tiny-shapes, tiny-shapes"),
    ],
)
def test_what_cannot_be_done(options: tuple[str, ...], error: type[Exception], complaint: str) -> None:
    settings = read("--role", "dit", *options)
    with pytest.raises(error, match=complaint), assembled(settings):
        pass


def test_an_upscaler_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ["--gateway", "tcp://127.0.0.1:5600", "--role", "upscaler", "--model", "tiny-shapes"]
    with pytest.raises(InvalidSettings, match="--role upscaler needs to know which: add --upscaler FOLDER_OR_HUB_ID"):
        read_settings(real)
    own, other = read_settings([*real, "--upscaler", "x", "--may-load", "y"]).of_each_model()
    assert (own.upscaler, other.upscaler) == ("x", "")


def test_an_enhancer_has_to_be_named() -> None:
    real = ["--gateway", "tcp://127.0.0.1:5600", "--role", "enhancer", "--model", "tiny-shapes"]
    with pytest.raises(InvalidSettings, match="--role enhancer needs to know which: add --enhancer FOLDER_OR_HUB_ID"):
        read_settings(real)
    with pytest.raises(InvalidSettings, match="--enhancer-instruction and --enhancer-tokens are about an enhancer"):
        read_settings([*real[:2], "--role", "dit", *real[4:], "--enhancer-tokens", "7"])
    more = ["--enhancer", "x", "--enhancer-tokens", "7", "--enhancer-instruction", "be brief", "--may-load", "y"]
    own, other = read_settings([*real, *more]).of_each_model()
    assert (own.enhancer, own.enhancer_tokens, own.enhancer_instruction) == ("x", 7, "be brief")
    assert (other.enhancer, other.enhancer_tokens, other.enhancer_instruction) == ("", 256, "")


def test_an_emulation_without_an_upscaler_says_what_it_has() -> None:
    with (
        pytest.raises(LoadError, match=r"no role upscaler here; its roles are encoder, dit, decoder"),
        assembled(read("--role", "upscaler")),
    ):
        pass


def test_each_further_model_is_one_that_begins_with_nothing() -> None:
    own, named, unnamed = read("--role", "dit", "--may-load", "b=sd3-l20", "--may-load", "x/y.toml").of_each_model()
    assert own.role == (Role.DIT,)
    assert (named.role, named.model, named.profile) == ((), "b", "sd3-l20")
    assert (unnamed.role, unnamed.model, unnamed.profile) == ((), "", "x/y.toml")


def test_a_variable_with_a_slip_is_told_and_those_of_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISAGFUSION_STAGE_ROLES", "DISAGFUSION_STAGE_REPEATS", "DISAGFUSION_MAX_N"):
        monkeypatch.setenv(name, "1")
    slip = "DISAGFUSION_STAGE_ROLES is no setting and is ignored; did you mean DISAGFUSION_STAGE_ROLE?"
    assert list(ignored_variables()) == [slip]


def test_levels_of_step_caches_are_named_with_all_that_they_leave_open() -> None:
    real = ["--gateway", "tcp://127.0.0.1:5600", "--role", "dit", "--model", "m"]
    given = "low = first-block:threshold=0.05, high=taylor:interval=4, medium=none"
    own, other = read_settings([*real, "--step-cache", given, "--may-load", "y"]).of_each_model()
    assert {level: cache and str(cache) for level, cache in own.step_cache.items()} == {
        "low": "first-block:threshold=0.05",
        "high": "taylor:interval=4:warm-up=3:order=1",
        "medium": None,
    }
    assert other.step_cache == {}
    table = Settings(model="m", role="dit", gateway="tcp://127.0.0.1:1", step_cache={"low": "pyramid"})  # type: ignore[arg-type]
    assert str(table.step_cache["low"]) == "pyramid:interval=2:start=0.2:end=0.9"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pyramid", "'pyramid' is no LEVEL=CACHE, such as medium=first-block:threshold=0.1"),
        ("low=pyramid,low=sea", "names a level twice"),
        ("none=pyramid", "'none' names no level of a step cache"),
        ("LOW=pyramid", "'LOW' names no level of a step cache"),
        ("low=teacache", "'teacache' is no step cache; first-block, mag, taylor, pyramid, faster, sea are"),
        ("low=taylor:threshold=1", "'threshold=1' is no option of taylor; it has interval=…, warm-up=…, order=…"),
        ("low=taylor:interval=2.5", "interval of taylor is a whole number from 2 to 100, not '2.5'"),
        ("low=first-block:threshold=nan", "threshold of first-block is a number from 0 to 10, not 'nan'"),
        ("low=mag", "mag needs ratios=…: numbers from 0.01 to 100, at most 64, with / between"),
        ("low=pyramid:start=0.9:end=0.3", "start of pyramid, 0.9, must be below end, 0.3"),
    ],
)
def test_a_step_cache_with_a_slip_is_told(given: str, message: str) -> None:
    real = ["--gateway", "tcp://127.0.0.1:5600", "--role", "dit", "--model", "m"]
    with pytest.raises(InvalidSettings, match=re.escape(message)):
        read_settings([*real, "--step-cache", given])
