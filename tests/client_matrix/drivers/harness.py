"""What the Python drivers share: cases in, a JSON line per case out. Imports nothing of theirs or ours."""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path

SETUP = json.loads(Path(sys.argv[1]).read_text())
"""Urls, key, model, prompt and paths of pictures, as ``__main__`` writes them."""

PICTURE, OTHER, MASK = (Path(SETUP[name]) for name in ("picture", "other", "mask"))
PROMPT, MODEL, KEY = SETUP["prompt"], SETUP["model"], SETUP["key"]
SEVERAL = SETUP["several"]
"""A model that edits several pictures at once."""

ONE_MODEL_KEY, ONE_PICTURE_KEY, SPENT_KEY = (SETUP[f"{name}_key"] for name in ("one_model", "one_picture", "spent"))
"""Keys with limits: for another model, for a picture a minute, and for one and no more."""
BATCH_OVER = ("completed", "failed", "expired", "cancelled")

CASES = {}
CANNOT = {}


def case(function, name=None):
    """The case is called as the function, unless a name is given; the result is what the client saw."""
    CASES[name or function.__name__] = function
    return function


def cannot(why, *names):
    CANNOT.update(dict.fromkeys(names, why))


def pictures(items):
    """Of OpenAI's ``data``, as objects or as dictionaries."""
    found = []
    for item in items:
        get = item.get if isinstance(item, dict) else lambda name, item=item: getattr(item, name, None)
        found.append({"url": get("url")} if get("url") else {"b64": get("b64_json")})
    return found


def refusal(call, describe):
    """The error that ``call`` must end in."""
    try:
        answer = call()
    except Exception as error:
        return {"error": describe(error)}
    return {"answer": repr(answer)[:200]}


def openai_error(error):
    """Of every error that derives from the OpenAI SDK's."""
    return {
        "status": error.status_code,
        "type": error.type,
        "code": error.code,
        "param": error.param,
        "message": str(error),
    }


def batch_lines(model):
    """Of an input file for a batch: two that can be done and one that cannot."""
    bodies = {"one": {"seed": 1}, "two": {"seed": 2}, "bad": {"size": "1000x1000"}}
    return "\n".join(
        json.dumps(
            {
                "custom_id": name,
                "method": "POST",
                "url": "/v1/images/generations",
                "body": {"model": model, "prompt": PROMPT, **body},
            }
        )
        for name, body in bodies.items()
    ).encode()


def of_batch(ended, counts, output, errors):
    """What its two files hold, in what ``done_by_the_line`` wants to know."""
    made = [json.loads(line)["response"]["body"] for line in output.splitlines()]
    refused = [json.loads(line) for line in errors.splitlines()]
    return {
        "ended": ended,
        "counts": list(counts),
        "pictures": [picture for body in made for picture in pictures(body["data"])],
        "errors": {line["custom_id"]: line["response"]["body"]["error"]["code"] for line in refused},
    }


def asked_until(look, over):
    """The first thing looked at that is over; asked again after a moment, as its users do."""
    while not over(found := look()):
        time.sleep(0.1)
    return found


def gave_up(call, *errors):
    try:
        answer = call()
    except errors as error:
        return {"gave_up": type(error).__name__}
    return {"answer": repr(answer)[:200]}


def run():
    for name in SETUP["cases"]:
        if name in CANNOT:
            line = {"case": name, "cannot": CANNOT[name]}
        else:
            try:
                line = {"case": name, "saw": CASES[name]()}
            except Exception as error:  # whatever a client does, the other cases are still to be run
                line = {
                    "case": name,
                    "failed": f"{type(error).__name__}: {error}"[:600],
                    "trace": traceback.format_exc(),
                }
        print(json.dumps(line), flush=True)
