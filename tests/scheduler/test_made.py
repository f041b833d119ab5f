"""Requests whose encoding another one has left: events → expected actions."""

from __future__ import annotations

from scheduler import actions as do
from scheduler import events as ev
from scheduler.reach import GATEWAY
from scheduler.spec import Made, Output
from tests.scheduler.game import Game, of, releases, runs
from wire.types import REQUIRED, Handle, ServerId

E, D, V = REQUIRED


def kept(server: str = "a", name: str = "r") -> Made:
    return Made(ServerId(server), (Output(D, Handle(f"kept@{name}"), 10),))


def test_the_dit_runs_at_once() -> None:
    game = Game()
    game.join("a", {E})
    game.join("b", {D, V})
    actions = game.ask("r", made=kept())
    assert runs(actions) == [("r/d0", "b")]
    (run,) = of(do.Run, actions)
    assert [(given.handle, given.holder) for given in run.inputs] == [("kept@r", "a")]
    ended = [*game.through("r/d0", "r/v0"), *game.taken("r/v0")]
    assert "kept@r" in releases(ended)["a"]
    assert of(do.Finish, ended)


def test_what_cannot_be_fetched_is_made_again() -> None:
    game = Game()
    game.join("a", {E})
    game.join("b", {D, V})
    game.ask("r", made=kept())
    assert runs(game.failed("r/d0", "input_lost", lost=(Handle("kept@r"),))) == [("r/e", "a")]
    assert runs(game.through("r/e")) == [("r/d0", "b")]


def test_what_died_with_its_server_is_made_again() -> None:
    game = Game()
    game.join("a", {E})
    game.join("c", {E})
    game.ask("r", made=kept())  # nobody denoises yet
    assert runs(game.lose("a")) == [("r/e", "c")]


def test_what_a_server_had_that_is_gone_is_made() -> None:
    game = Game()
    game.join("b", {E, D, V})
    assert runs(game.ask("r", made=kept("a"))) == [("r/e", "b")]


def test_what_nobody_can_fetch_from_its_server_is_made() -> None:
    game = Game()
    for name, role in (("a", E), ("c", E), ("d", D), ("v", V)):
        game.join(name, {role})
    for fetcher in ("d", GATEWAY):
        game.post(ev.PeerUnreached(ServerId(fetcher), ServerId("a"), "silent"))
    while game.trials:
        fetcher, holder = game.trials.pop()
        game.post(ev.PeerUnreached(fetcher, holder, "silent") if holder == "a" else ev.PeerReached(fetcher, holder))
    assert game.scheduler.view.servers[ServerId("a")].aside
    assert runs(game.ask("r", made=kept("a"))) == [("r/e", "c")]


def test_two_requests_use_the_same() -> None:
    game = Game()
    game.join("a", {E})
    game.ask("r", made=kept(name="r"))
    game.ask("s", made=kept(name="s"))
    game.lose("a")
    game.join("b", {E, D, V})
    assert {job for job, _ in runs(game.through("r/e"))} >= {"r/d0"} or game.jobs_on("b")
    assert "s/e" in game.where
