"""fleet.toml: what it may say, and what is said to whoever gets it wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fleet.command import main
from fleet.description import Fleet
from fleet.keys import look_up
from fleet.reading import read_fleet
from fleet.table import InvalidFleet
from tests.curve import generate_keys

ROOT = Path(__file__).parents[2]
SMALL = """
[models.shapes]
source = "tiny-shapes"
[pools.cpu]
models = ["shapes"]
"""


def read(text: str, folder: Path) -> Fleet:
    path = folder / "fleet.toml"
    path.write_text(text)
    return read_fleet(path)


def test_little_is_needed(tmp_path: Path) -> None:
    fleet = read(SMALL, tmp_path)
    assert (fleet.name, list(fleet.gateways), fleet.pools["cpu"].most) == ("disagfusion", ["gateway"], 1)


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "fleet").glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_are_fleets(path: Path) -> None:
    read_fleet(path)


def test_a_begin_for_each_server_in_turn(tmp_path: Path) -> None:
    pool = read(SMALL + 'begin = [["encoder", "decoder"], ["dit"]]\nmin = 3', tmp_path).pools["cpu"]
    assert [pool.begins(index) for index in (1, 2, 3)] == [("encoder", "decoder"), ("dit",), ("encoder", "decoder")]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "models: is missing"),
        ("models = 3 4", "is not TOML"),
        (SMALL + "mni = 2", "pools.cpu: there is no 'mni' here; did you mean 'min'?"),
        (SMALL + "xyzzy = 2", "pools.cpu: there is no 'xyzzy' here; there are 'models', 'gateways', "),
        (
            SMALL + 'roles = ["painter"]',
            "pools.cpu.roles.0: Input should be 'enhancer', 'encoder', 'dit', 'decoder' or 'upscaler'",
        ),
        (SMALL + 'roles = ["dit"]', "models.shapes: no pool may serve its encoder"),
        (SMALL + 'roles = ["dit"]\nbegin = [["encoder"]]', "pools.cpu: begin: encoder is not among roles (dit)"),
        (SMALL + "min = 3\nmax = 2", "pools.cpu: max (2) must be at least 1, and not below min (3)"),
        (
            SMALL + 'gateways = ["man"]\n[gateways.main]',
            "pools.cpu.gateways: there is no 'man' here; did you mean 'main'",
        ),
        (SMALL + "[gateways.cpu-1]", "gateways.cpu-1: processes of a pool have such a name"),
        (SMALL + "[relays.cpu-1]", "relays.cpu-1: processes of a pool have such a name"),
        (SMALL + "[relays.gateway]", "relays.gateway: a gateway has this name"),
        (SMALL + "[relays.front]\nprot = 1", "relays.front: there is no 'prot' here; did you mean 'port'?"),
        (SMALL + "".join(f"[relays.r{n}]\n" for n in range(5)), "relays: Dictionary should have at most 4 items"),
        (SMALL + '[keys]\nrelay_key = {env = "R"}', "keys.relay_key: there are no relays"),
        (
            SMALL + '[keys]\ncurve_servers = {env = "S"}',
            "keys: encryption needs curve_gateways and curve_servers, or neither",
        ),
        (SMALL + "options = {curve_secret_key = 'x'}", "'curve_secret_key' is 'curve_gateways' and 'curve_servers' of"),
        (SMALL + "options = {relay = ['tcp://r:5700']}", "pools.cpu.options: 'relay' is set by the fleet"),
        (SMALL + "options = {relay_key = 'x'}", "pools.cpu.options: 'relay_key' is the table 'keys'"),
        (SMALL + "[gateways.Main]", "gateways.Main: 'Main' is no name: write up to 40 of a-z, 0-9 and -"),
        (SMALL.replace('["shapes"]', '["shape"]'), "there is no model 'shape'; did you mean 'shapes'?"),
        (
            SMALL + "options = {store_byte = 1}",
            "pools.cpu.options: there is no 'store_byte' here; did you mean 'store_",
        ),
        (SMALL + "options = {store_bytes = 1}", "pools.cpu.options: store_bytes: Input should be greater than"),
        (SMALL + "options = {role = 'dit'}", "pools.cpu.options: 'role' is 'begin' and 'roles' of the pool"),
        (SMALL + "options = {name = 'x'}", "pools.cpu.options: 'name' is set by the fleet"),
        (SMALL + "resources = {num_gpus = 1.5}", "1.5 GPUs cannot be had: write a whole number, or a fraction below 1"),
        (SMALL + "resources = {memory = '64 GB'}", "'64 GB' is no amount of memory; write 64GiB"),
        (SMALL + "[gateways.main.settings]\nprot = 1", "gateways.main.settings: there is no 'prot' here"),
        (SMALL + "[gateways.main.settings]\nmax_n = 0", "gateways.main.settings: max_n: Input should be greater"),
        (SMALL + "[gateways.main.settings]\nadmin_key = 'x'", "'admin_key' is the table 'keys'"),
        (SMALL + "[keys]\nadmin_key = 'swordfish'", "keys.admin_key: keys do not belong in this file"),
        (SMALL + "[keys]\nadmin_key = {}", "keys.admin_key: write either { env = "),
        (SMALL.replace("source", 'engine = "emulated"\nsource'), "models.shapes: with the emulated engine a model has"),
        (
            SMALL.replace('"shapes"]', '"shapes", "b"]') + '[models.b]\nsource = "x"\nrevision = "y"',
            "pools.cpu.models: of those after the first",
        ),
        (
            SMALL + '[models.a]\nsource = "x"\ndefault = true\n[models.b]\nsource = "y"\ndefault = true',
            "models: only one can be the default, not 'a' and 'b'",
        ),
    ],
)
def test_what_is_wrong_is_named(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidFleet) as error:
        read(text, tmp_path)
    assert complaint in str(error.value)
    assert "swordfish" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidFleet, match="cannot be read: No such file"):
        read_fleet(tmp_path / "nowhere.toml")


def test_what_is_set_around_it_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISAGFUSION_STAGE_STORE_BYTES", "nonsense")
    monkeypatch.setenv("DISAGFUSION_PORT", "nonsense")
    read(SMALL + "options = {threads = 1}\n[gateways.main.settings]\nmax_n = 2", tmp_path)


def test_keys_are_looked_up_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "admin").write_text("an operator's long key\n")
    keys = '[keys]\nadmin_key = {file = "admin"}\nhub_token = {env = "HUB"}\napi_keys.alice = {env = "ALICE"}'
    secrets = look_up(read(SMALL + keys, tmp_path).keys, {"HUB": "hf", "ALICE": "sk"}, tmp_path)
    assert secrets.of_gateways == {
        "DISAGFUSION_ADMIN_KEY": "an operator's long key",
        "DISAGFUSION_API_KEYS": '{"alice": "sk"}',
    }
    assert secrets.of_servers == {"HF_TOKEN": "hf"}
    assert "sk" not in repr(secrets)


def test_the_relays_key_is_for_relays_and_servers(tmp_path: Path) -> None:
    fleet = read(SMALL + '[keys]\nrelay_key = {env = "RELAY"}\n[relays.front]', tmp_path)
    secrets = look_up(fleet.keys, {"RELAY": "swordfish"}, tmp_path)
    assert secrets.of_servers == secrets.of_relays == {"DISAGFUSION_STAGE_RELAY_KEY": "swordfish"}
    assert not secrets.of_gateways


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ('admin_key = {env = "GONE"}', "keys.admin_key: the variable GONE is not set"),
        ('api_keys.alice = {file = "gone"}', "keys.api_keys.alice: .*gone cannot be read"),
        ('admin_key = {env = "EMPTY"}', "keys.admin_key: EMPTY is empty"),
    ],
)
def test_a_key_that_is_not_there_is_named(keys: str, complaint: str, tmp_path: Path) -> None:
    fleet = read(f"{SMALL}[keys]\n{keys}", tmp_path)
    with pytest.raises(InvalidFleet, match=complaint):
        look_up(fleet.keys, {"EMPTY": ""}, tmp_path)


ENCRYPTED = SMALL + '[keys]\ncurve_gateways = {env = "G"}\ncurve_servers = {file = "servers"}\n'


def test_a_key_pair_is_what_gateways_and_servers_need_to_know_each_other(tmp_path: Path) -> None:
    ours, theirs = generate_keys(), generate_keys()
    (tmp_path / "servers").write_text(f"{theirs.public} {theirs.secret}\n")
    secrets = look_up(read(ENCRYPTED, tmp_path).keys, {"G": f"{ours.public}\n{ours.secret}"}, tmp_path)
    assert secrets.of_gateways == {
        "DISAGFUSION_CURVE_PUBLIC_KEY": ours.public,
        "DISAGFUSION_CURVE_SECRET_KEY": ours.secret,
        "DISAGFUSION_CURVE_ALLOWED_KEYS": json.dumps({"*": theirs.public}),
    }
    assert secrets.of_servers == {
        "DISAGFUSION_STAGE_CURVE_PUBLIC_KEY": theirs.public,
        "DISAGFUSION_STAGE_CURVE_SECRET_KEY": theirs.secret,
        "DISAGFUSION_STAGE_CURVE_GATEWAY_KEY": ours.public,
    }


@pytest.mark.parametrize("pair", ["swordfish", "swordfish swordfish", "a b swordfish"])
def test_what_is_no_key_pair_is_said_and_not_shown(pair: str, tmp_path: Path) -> None:
    (tmp_path / "servers").write_text("x")
    with pytest.raises(InvalidFleet, match=r"keys\.curve_gateways: this is no CURVE key pair: two keys of 40") as error:
        look_up(read(ENCRYPTED, tmp_path).keys, {"G": pair}, tmp_path)
    assert "swordfish" not in str(error.value)


def test_the_schema_in_the_documentation_is_this_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = capsys.readouterr().out
    assert (ROOT / "docs" / "fleet.schema.json").read_text() == printed, (
        "python -m fleet schema > docs/fleet.schema.json"
    )


def test_the_schema_names_options(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("jsonschema_rs")
    import jsonschema_rs

    main(["schema"])
    schema: Any = json.loads(capsys.readouterr().out)
    described: Any = {"models": {"a": {"source": "x"}}, "pools": {"p": {"models": ["a"], "options": {"threads": 1}}}}
    assert jsonschema_rs.is_valid(schema, described)
    described["pools"]["p"]["options"] = {"treads": 1}
    assert not jsonschema_rs.is_valid(schema, described)
