"""The pipeline as tables of a terminal. Everything shown is plain text: what servers report cannot format anything."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clients.top.state import Pipeline, Row

ROLES = ("enhancer", "encoder", "dit", "decoder", "upscaler")
COMPUTES = ("running", "paused")
REQUESTS, NEWS = 10, 8
"""That are shown, the latest."""
BAR = 10
"""Characters of a full bar."""
SLOW = 1.3
"""Times its class's pace: worth a remark."""
STATES = {"done": "green", "failed": "red", "rejected": "red", "cancelled": "yellow", "computing": "cyan"}


def screen(pipeline: Pipeline, title: str) -> RenderableType:
    """All of it, from what waits to what happened."""
    parts: list[RenderableType] = [plain(title, "bold")]
    for model in sorted({str(stage["model"]) for stage in pipeline.rows("stages").values()}):
        parts += [_stages(pipeline, model), *_verdict(pipeline, model)]
    parts += [_servers(pipeline), _requests(pipeline), _news(pipeline)]
    return Group(*parts)


def plain(text: object, style: str = "") -> Text:
    """``text`` without what would move a terminal's cursor."""
    shown = "".join(each if each.isprintable() else "�" for each in str(text))
    return Text(shown, style, overflow="ellipsis")


def _stages(pipeline: Pipeline, model: str) -> Table:
    table = _table(model.partition("@")[0], "stage", "waiting", "computing", "next", "servers", "handed over in 60 s")
    for role in ROLES:
        stage = pipeline.rows("stages").get(f"{model} {role}")
        if stage is not None:
            stuck = "bold red" if stage["waiting"] and not stage["serving"] else ""
            figures = [plain(stage[name], stuck) for name in ("waiting", "computing", "committed", "serving")]
            table.add_row(plain(role), *figures, plain(f"{stage['handed_jobs']} × {_mean_bytes(stage)}"))
    return table


def _verdict(pipeline: Pipeline, model: str) -> Iterable[Text]:
    """Why roles move or do not. Models that share servers have one plan, under all their names."""
    for names, plan in pipeline.rows("plans").items():
        if plan.get("verdict") and (not names or model in names.split(", ")):
            yield plain(f"roles: {plan['verdict']}", "dim")


def _servers(pipeline: Pipeline) -> Table:
    table = _table("servers", "server", "roles", "busy", "computes", "next", "")
    for server in sorted(pipeline.rows("servers").values(), key=lambda row: str(row["name"])):
        now = Text("\n").join(plain(_job(job)) for job in server["jobs"] if job["state"] in COMPUTES)
        ahead = Text("\n").join(plain(_job(job)) for job in server["jobs"] if job["state"] not in COMPUTES)
        name = plain(server["name"], "red" if server["suspect"] or server["leaving"] else "")
        remarks = plain("; ".join(_remarks(server)), "yellow")
        table.add_row(name, _roles(server), _bar(server["busy"] or 0), now, ahead, remarks)
    return table


def _roles(server: Row) -> Text:
    """Those held, and those on their way."""
    wanted = server.get("switching_to")
    held = " ".join(server["roles"]) or "–"
    return plain(held if wanted is None else f"{held} → {' '.join(wanted) or '–'}", "" if wanted is None else "cyan")


def _job(job: Row) -> str:
    """As in ``req_1a2b3c dit0 7/12``."""
    request, _, name = str(job["job"]).rpartition("/")
    return " ".join(
        filter(None, (short(request), name, job.get("steps"), "paused" if job["state"] == "paused" else ""))
    )


def _remarks(server: Row) -> Iterable[str]:
    for word in ("pinned", "leaving", "suspect"):
        if server[word]:
            yield word
    if server.get("why_set_aside"):
        yield str(server["why_set_aside"])
    if server["speed_factor"] > SLOW:
        yield f"{server['speed_factor']:.1f} × as slow as its class"


def _requests(pipeline: Pipeline) -> Table:
    table = _table("requests", "request", "model", "arrived", "state", "predicted", "took", "")
    latest = sorted(pipeline.rows("requests").items(), key=lambda item: item[1]["arrived"], reverse=True)
    for name, row in latest[:REQUESTS]:
        model = str(row["model"]).partition("@")[0] + (f" × {row['pictures']}" if row["pictures"] > 1 else "")
        state = plain(row["state"], STATES.get(row["state"], ""))
        figures = (_seconds(row["predicted"]), _seconds(row["took"]))
        table.add_row(
            plain(short(name)), plain(model), plain(_clock(row["arrived"])), state, *figures, plain(row["why"])
        )
    return table


def _news(pipeline: Pipeline) -> Table:
    table = _table("what happened", "at", "server", "")
    lines = sorted(pipeline.rows("news").items(), key=lambda item: int(item[0]), reverse=True)
    for _, line in lines[:NEWS]:
        style = "red" if line["kind"] in ("lost", "failed", "rejected", "aside") else ""
        table.add_row(plain(_clock(line["at"])), plain(line["server"] or ""), plain(line["text"], style))
    return table


def _table(title: str, *columns: str) -> Table:
    heading = Text("\n").append_text(plain(title, "bold"))
    table = Table(title=heading, title_justify="left", box=None, padding=(0, 2, 0, 0), expand=True)
    for column in columns[:-1]:
        table.add_column(column, header_style="dim", no_wrap=column != "roles")
    table.add_column(columns[-1], header_style="dim", ratio=1)
    return table


def _bar(share: float) -> Text:
    full = round(BAR * share)
    return Text(f"{'█' * full}{'░' * (BAR - full)} {share:4.0%}")


def _mean_bytes(stage: Row) -> str:
    size = stage["handed_bytes"] / stage["handed_jobs"] if stage["handed_jobs"] else 0
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _seconds(value: Any) -> Text:
    return plain("" if value is None else f"{value:.2f} s")


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def short(request: str) -> str:
    return request if len(request) <= 16 else f"{request[:12]}…"
