"""Which model a request gets, and when one is ready."""

from __future__ import annotations

from gateway.service.catalogue import MAX_MODELS, Catalogue
from wire.types import Role, ServerId

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
    catalogue.joined(A, model(revision="1"), tuple(Role))
    catalogue.joined(B, model(revision="2"), (Role.DIT,))
    assert catalogue.resolve("tiny").key == "tiny@1"
    catalogue.holds(B, tuple(Role))
    assert catalogue.resolve("tiny").key == "tiny@2"


def test_models_are_remembered_when_their_servers_are_gone(model):
    catalogue = Catalogue()
    catalogue.joined(A, model(), tuple(Role))
    catalogue.lost(A)
    assert not catalogue.ready()
    assert [info.name for info in catalogue.models()] == ["tiny"]
    assert catalogue.resolve("tiny") is not None
    assert catalogue.resolve("other") is None


def test_a_model_that_nobody_serves_is_forgotten_first(model):
    catalogue = Catalogue()
    catalogue.joined(A, model("served"), tuple(Role))
    for number in range(MAX_MODELS + 5):
        catalogue.joined(B, model(f"m{number}"), tuple(Role))
    assert len(catalogue.models()) == MAX_MODELS
    assert catalogue.resolve("served") is not None
    assert catalogue.resolve("m0") is None
