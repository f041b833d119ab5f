"""Which rewritten prompts are kept, for whom, and until when."""

from __future__ import annotations

from gateway.service.embeddings import Embeddings
from gateway.service.rewrites import Rewrites
from wire.params import Enhancer, ImageParams

ONE, OTHER = Enhancer("writer", "0e", 64), Enhancer("writer", "0f", 64)


def asked(request_for, prompt="a star", **more):
    return request_for(images=(ImageParams(prompt=prompt, seed=3),), **more)


def test_the_same_prompt_has_the_same_words_whatever_else_is_asked_for(request_for, model):
    rewrites = Rewrites(Embeddings(1))
    rewrites.made(asked(request_for), model(enhancer=ONE), "a bright star")
    again = request_for(images=(ImageParams(prompt="a star", seed=9, width=64),), request_id="s")
    assert rewrites.find(again, model(revision="2", enhancer=ONE)) == "a bright star"
    assert rewrites.find(asked(request_for, "a stars"), model(enhancer=ONE)) is None
    assert rewrites.find(again, model(enhancer=OTHER)) is None
    assert rewrites.find(again, model()) is None


def test_tenants_share_them_only_where_they_share_encodings(request_for, model):
    for shared in (False, True):
        rewrites = Rewrites(Embeddings(1, shared=shared))
        rewrites.made(asked(request_for, tenant="a"), model(enhancer=ONE), "a bright star")
        assert rewrites.find(asked(request_for, tenant="a"), model(enhancer=ONE)) == "a bright star"
        assert (rewrites.find(asked(request_for, tenant="b"), model(enhancer=ONE)) is not None) == shared


def test_nothing_is_kept_where_no_encodings_are(request_for, model):
    rewrites = Rewrites(Embeddings(0))
    rewrites.made(asked(request_for), model(enhancer=ONE), "a bright star")
    assert rewrites.find(asked(request_for), model(enhancer=ONE)) is None


def test_those_used_longest_ago_go_first(request_for, model):
    rewrites = Rewrites(Embeddings(1), most=10)
    for prompt in ("one", "two"):
        rewrites.made(asked(request_for, prompt), model(enhancer=ONE), "12345")
    assert rewrites.find(asked(request_for, "one"), model(enhancer=ONE)) == "12345"
    rewrites.made(asked(request_for, "three"), model(enhancer=ONE), "12345")
    assert rewrites.find(asked(request_for, "two"), model(enhancer=ONE)) is None
    assert rewrites.find(asked(request_for, "one"), model(enhancer=ONE)) == "12345"
