"""Which model a request gets, and when one is ready."""

from __future__ import annotations

import msgspec

from gateway.service.catalogue import MAX_MODELS, Catalogue
from wire.params import Adapter, Enhancer, Upscaler
from wire.types import REQUIRED, Role, ServerId

A, B = ServerId("a/1"), ServerId("b/1")


def test_a_model_is_ready_when_all_roles_are_held_by_whomever(model):
    catalogue = Catalogue()
    catalogue.joined(A, model(), (Role.ENCODER, Role.DECODER))
    assert not catalogue.ready()
    assert catalogue.status()["tiny"]["missing"] == [Role.DIT]
    catalogue.joined(B, model(), (Role.DIT,))
    assert catalogue.ready()
    assert catalogue.status() == {
        "tiny": {"key": "tiny@1", "roles": {"encoder": 1, "dit": 1, "decoder": 1}, "missing": []}
    }


def test_stages_of_different_revisions_do_not_add_up(model):
    catalogue = Catalogue()
    catalogue.joined(A, model(revision="1"), (Role.ENCODER, Role.DECODER))
    catalogue.joined(B, model(revision="2"), (Role.DIT,))
    assert not catalogue.ready()
    assert [info.key for info in catalogue.models()] == ["tiny@2"]


def test_of_several_revisions_the_complete_one_and_then_the_latest_is_served(model):
    catalogue = Catalogue()
    catalogue.joined(A, model(revision="1"), REQUIRED)
    catalogue.joined(B, model(revision="2"), (Role.DIT,))
    assert catalogue.resolve("tiny").key == "tiny@1"
    catalogue.holds(B, REQUIRED)
    assert catalogue.resolve("tiny").key == "tiny@2"


def test_models_are_remembered_when_their_servers_are_gone(model):
    catalogue = Catalogue()
    catalogue.joined(A, model(), REQUIRED)
    catalogue.lost(A)
    assert not catalogue.ready()
    assert [info.name for info in catalogue.models()] == ["tiny"]
    assert catalogue.resolve("tiny") is not None
    assert catalogue.resolve("other") is None


def test_a_model_that_nobody_serves_is_forgotten_first(model):
    catalogue = Catalogue()
    catalogue.joined(A, model("served"), REQUIRED)
    for number in range(MAX_MODELS + 5):
        catalogue.joined(B, model(f"m{number}"), REQUIRED)
    assert len(catalogue.models()) == MAX_MODELS
    assert catalogue.resolve("served") is not None
    assert catalogue.resolve("m0") is None


# --- adapters ---------------------------------------------------------------------------------------------------------

STYLE = Adapter("style", "0a", (Role.DIT,))
INK = Adapter("ink", "0b", (Role.ENCODER, Role.DIT))


def offered(catalogue):
    (info,) = catalogue.models()
    assert catalogue.resolve("tiny").adapters == info.adapters
    return info.adapters


def test_a_model_has_the_adapters_of_all_its_servers(model):
    catalogue = Catalogue()
    catalogue.joined(A, model(adapters=(STYLE,)), REQUIRED)
    catalogue.joined(B, model(adapters=(INK,)), REQUIRED)
    assert offered(catalogue) == (STYLE, INK)
    catalogue.lost(A)
    assert offered(catalogue) == (INK,)


def test_one_that_no_server_of_a_stage_has_is_not_offered_and_told_to_operators(model):
    catalogue = Catalogue()
    catalogue.joined(A, model(), (Role.ENCODER, Role.DECODER))
    catalogue.joined(B, model(adapters=(STYLE, INK)), (Role.DIT,))
    assert offered(catalogue) == (STYLE,)
    assert catalogue.status()["tiny"]["loras_lacked_by"] == {"ink": [Role.ENCODER]}
    catalogue.holds(B, (Role.ENCODER, Role.DIT))
    assert offered(catalogue) == (STYLE, INK)
    catalogue.set_aside(B, (Role.DIT,), "not reached")
    assert catalogue.missing("tiny@1") == [Role.DIT]
    assert offered(catalogue) == (STYLE, INK)  # as for the model itself, the dit is waited for


def test_of_different_files_under_one_name_one_that_all_stages_have_is_offered(model):
    catalogue = Catalogue()
    other = Adapter("ink", "ff", (Role.ENCODER, Role.DIT))
    catalogue.joined(A, model(adapters=(INK,)), REQUIRED)
    catalogue.joined(B, model(adapters=(other,)), (Role.DIT,))
    assert offered(catalogue) == (INK,)
    catalogue.joined(B, model(adapters=(other,)), REQUIRED)
    assert offered(catalogue) == (other,)


def test_a_model_without_servers_keeps_the_adapters_that_it_had_last(model):
    catalogue = Catalogue()
    catalogue.joined(A, model(adapters=(STYLE,)), REQUIRED)
    catalogue.lost(A)
    assert offered(catalogue) == (STYLE,)


def test_what_keeps_servers_of_one_name_apart_is_told(model):
    catalogue = Catalogue()
    plain = msgspec.structs.replace(model(), key="m@1")
    catalogue.joined(ServerId("a"), plain, {Role.DIT})
    assert catalogue.unlike(plain) == ()
    quantised = msgspec.structs.replace(model(), key="m@2", formats={"transformer": "int8"})
    catalogue.joined(ServerId("b"), quantised, {Role.DIT})
    assert catalogue.unlike(quantised) == ("formats of weights ({'transformer': 'int8'} here, none there)",)
    assert catalogue.unlike(msgspec.structs.replace(quantised, name="other")) == ()
    assert catalogue.missing("m@2") == [Role.ENCODER, Role.DECODER], "whatever the others hold"
    catalogue.lost(ServerId("a"))
    assert catalogue.unlike(quantised) == ()


# --- an optional stage ------------------------------------------------------------------------------------------------

SMALL, LARGE = Upscaler("small", "0c", 2), Upscaler("large", "0d", 4)


def test_a_model_has_an_optional_stage_while_some_server_brings_it_and_is_ready_without(model):
    catalogue = Catalogue()
    catalogue.joined(A, model(), REQUIRED)
    assert list(catalogue.status()["tiny"]["roles"]) == list(REQUIRED)
    catalogue.joined(B, model(upscaler=SMALL), ())
    catalogue.joined(A, model(), REQUIRED)  # whoever came last says nothing about others
    assert catalogue.resolve("tiny").upscaler == SMALL
    assert catalogue.status()["tiny"]["roles"] == dict.fromkeys(REQUIRED, 1) | {Role.UPSCALER: 0}
    assert catalogue.status()["tiny"]["missing"] == []
    catalogue.lost(B)
    assert catalogue.resolve("tiny").upscaler is None


def test_of_several_upscalers_one_that_is_held_is_offered(model):
    catalogue = Catalogue()
    catalogue.joined(A, model(upscaler=SMALL), (*REQUIRED, Role.UPSCALER))
    catalogue.joined(B, model(upscaler=LARGE), REQUIRED)
    assert catalogue.resolve("tiny").upscaler == SMALL
    catalogue.holds(B, tuple(Role))
    assert catalogue.resolve("tiny").upscaler == LARGE
    catalogue.set_aside(B, (Role.UPSCALER,), "not reached")
    assert catalogue.resolve("tiny").upscaler == SMALL


def test_an_enhancer_is_offered_beside_an_upscaler_of_another_server(model):
    writer = Enhancer("writer", "0e", 64)
    catalogue = Catalogue()
    catalogue.joined(A, model(upscaler=SMALL), REQUIRED)
    catalogue.joined(B, model(enhancer=writer), (Role.ENHANCER,))
    told = catalogue.resolve("tiny")
    assert (told.upscaler, told.enhancer) == (SMALL, writer)
    assert catalogue.status()["tiny"]["roles"] == {Role.ENHANCER: 1, **dict.fromkeys(REQUIRED, 1), Role.UPSCALER: 0}
    catalogue.lost(B)
    assert catalogue.resolve("tiny").enhancer is None


def test_only_guiders_that_all_servers_of_the_model_have_are_offered(model):
    """An older server knows none, has the same key, and would leave out what it does not know."""
    catalogue = Catalogue()
    catalogue.joined(A, model(), (Role.ENCODER, Role.DECODER))
    catalogue.joined(B, model(guiders=("cfg", "apg")), (Role.DIT,))
    assert catalogue.resolve("tiny").guiders == ()
    catalogue.joined(A, model(guiders=("apg", "pag")), REQUIRED)
    assert catalogue.resolve("tiny").guiders == ("apg",)
    catalogue.lost(A)
    assert catalogue.resolve("tiny").guiders == ("cfg", "apg")
