"""When a server that has nothing to do helps with another's guided steps."""

from __future__ import annotations

import pytest

from scheduler import actions as do
from scheduler.elastic.settings import ElasticSettings
from tests.scheduler.game import D, E, V, of
from tests.scheduler_elastic.play import Play


def helps(settings: ElasticSettings, side: int = 1024, *, guided: bool = True) -> list[do.Help]:
    """Of a request for which there are two dit servers."""
    game = Play(settings)
    game.serve("ends", {E, V})
    for name in ("a", "b"):
        game.serve(name, {D}, software="x")
    game.want("r", side, guided=guided)
    return of(do.Help, game.through("r/e"))


def settings(**given: object) -> ElasticSettings:
    return ElasticSettings(elastic_roles=False, **given)  # type: ignore[arg-type]


def test_it_pays_where_half_of_the_time_is_much_longer_than_the_swaps() -> None:
    (help_,) = helps(settings())
    alone = help_.predicted_seconds
    assert help_.reason == f"it has nothing to do, and {alone:.1f} s become {alone / 2 + 25 * 0.01:.1f} s"


@pytest.mark.parametrize(
    "given", [{"swap_seconds": 1.0}, {"share_gain_seconds": 1000.0}, {"share_guidance": False}], ids=str
)
def test_it_does_not_where_swaps_take_as_long_or_the_gain_is_small_or_nobody_wants_it(given: dict[str, object]) -> None:
    assert helps(settings(**given)) == []


def test_it_does_not_without_guidance() -> None:
    assert helps(settings(), guided=False) == []
