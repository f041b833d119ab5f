"""The program curl, as the examples of our documentation call it."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

from harness import (
    BATCH_OVER,
    KEY,
    MASK,
    MODEL,
    ONE_MODEL_KEY,
    ONE_PICTURE_KEY,
    OTHER,
    PICTURE,
    PROMPT,
    SETUP,
    SEVERAL,
    SPENT_KEY,
    asked_until,
    batch_lines,
    case,
    of_batch,
    refusal,
    run,
)
from raw import drawn

FOLDER = Path(tempfile.mkdtemp())
OVER_TIME = 28
"""What curl ends with after ``--max-time``."""
SEEDS = (1, 2, 3, 4)


class Refused(Exception):
    def __init__(self, status, body):
        super().__init__(body)
        self.told = {"status": status, **json.loads(body)["error"]}


def command(path, *options, door="url", key=KEY):
    """With the body in a file that is written anew by each try, and the status on standard output."""
    body = FOLDER / uuid.uuid4().hex
    fixed = ["curl", "--silent", "--show-error", "--output", str(body), "--write-out", "%{http_code}"]
    return body, [*fixed, "--header", f"authorization: Bearer {key}", *options, f"{SETUP[door]}/{path}"]


def call(path, *options, **to):
    """The bytes of the answer. Raises ``Refused``."""
    body, line = command(path, *options, **to)
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    if int(done.stdout) >= 400:
        raise Refused(int(done.stdout), body.read_text())
    return body.read_bytes()


def ask(*given, **to):
    return json.loads(call(*given, **to))


def fields(more):
    return {name: value for name, value in ({"model": MODEL, "prompt": PROMPT} | more).items() if value is not None}


def as_json(body):
    return ("--header", "content-type: application/json", "--data", json.dumps(body))


def generation(*options, **more):
    return ("images/generations", *as_json(fields(more)), *options)


def generate(*options, door="url", key=KEY, **more):
    return ask(*generation(*options, **more), door=door, key=key)


def form(*files, **more):
    texts = (f"{name}={value}" for name, value in fields(more).items())
    return ("images/edits", *(word for part in (*files, *texts) for word in ("--form", part)))


def edit(*files, **more):
    return ask(*form(f"image=@{PICTURE}", *files, **more))


def streamed(*given):
    text = call(given[0], "--no-buffer", *given[1:]).decode()
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]
    return {"events": [event["type"] for event in events], **drawn({"data": events})}


def refused(act):
    return refusal(act, lambda error: error.told)


def upload(path, purpose):
    return ask("files", "--form", f"purpose={purpose}", "--form", f"file=@{path}")


@case
def models():
    retrieved = ask("models/org/tiny")["id"]
    return {"models": [model["id"] for model in ask("models")["data"]], "retrieved": retrieved}


@case
def files():
    kept = upload(PICTURE, "vision")
    return {
        "id": kept["id"],
        "bytes": kept["bytes"],
        "sent": PICTURE.stat().st_size,
        "listed": kept["id"] in [file["id"] for file in ask("files?purpose=vision")["data"]],
        "same": call(f"files/{kept['id']}/content") == PICTURE.read_bytes(),
        "deleted": ask(f"files/{kept['id']}", "--request", "DELETE")["deleted"],
    }


@case
def job():
    posted = generate(**{"async": True})
    path = f"images/jobs/{posted['id']}"
    ended = asked_until(lambda: ask(path), lambda found: found["completed_at"] is not None)
    deleted = ask(path, "--request", "DELETE")["deleted"]
    told = {"id": posted["id"], "posted": posted["status"], "ended": ended["status"], "deleted": deleted}
    return drawn(ended["response"], **told, afterwards=refused(lambda: ask(path))["error"]["status"])


@case
def batch():
    lines = FOLDER / "lines.jsonl"
    lines.write_bytes(batch_lines(MODEL))
    wanted = {"endpoint": "/v1/images/generations", "completion_window": "24h"}
    begun = ask("batches", *as_json({"input_file_id": upload(lines, "batch")["id"], **wanted}))
    ended = asked_until(lambda: ask(f"batches/{begun['id']}"), lambda found: found["status"] in BATCH_OVER)
    counts = ended["request_counts"]
    output, errors = (call(f"files/{ended[name]}/content").decode() for name in ("output_file_id", "error_file_id"))
    return of_batch(ended["status"], (counts["completed"], counts["failed"]), output, errors)


@case
def once():
    key = ("--header", f"Idempotency-Key: {uuid.uuid4()}")
    return drawn(*(generate(*key) for _ in "12"))


@case
def over_limit():
    return drawn(generate(key=ONE_PICTURE_KEY)) | refused(lambda: generate(key=ONE_PICTURE_KEY))


@case
def budget():
    spent = {"door": "budget", "key": SPENT_KEY}
    return drawn(generate(**spent)) | refused(lambda: generate(**spent)) | {"tries": 2}


@case
def concurrent():
    begun = [command(*generation(seed=seed, size="64x64")) for seed in SEEDS]
    processes = [subprocess.Popen(line, stdout=subprocess.PIPE) for _, line in begun]
    assert all(process.communicate()[0] == b"200" for process in processes)
    together = [json.loads(body.read_text()) for body, _ in begun]
    return drawn(*together, *(generate(seed=seed, size="64x64") for seed in SEEDS))


@case
def abort():
    try:
        answer = generate("--max-time", "1", n=10, size="512x512", steps=50)
    except subprocess.CalledProcessError as error:
        return {"gave_up": error.stderr} if error.returncode == OVER_TIME else {"ended": error.returncode}
    return {"answer": repr(answer)[:200]}


def in_vain():
    """It tries again, as long after a refusal as that says, until a second try has gone by."""
    began = time.monotonic()
    told = refused(lambda: generate("--retry", "1", door="gives_up"))
    assert time.monotonic() - began >= 1, "it did not wait as long as it was told to"
    return told | {"tries": 2}


for name, act in {
    "generate": lambda: drawn(generate(model=None)),
    "n": lambda: drawn(generate(n=2)),
    "size": lambda: drawn(generate(size="192x128"), asked="192x128"),
    "url": lambda: drawn(generate(response_format="url")),
    "b64": lambda: drawn(generate(response_format="b64_json")),
    "seed": lambda: drawn(*(generate(seed=7, size="64x64") for _ in "12")),
    "stream": lambda: streamed(*generation(stream=True, partial_images=2)),
    "edit": lambda: drawn(edit()),
    "edit_list": lambda: drawn(ask(*form(f"image[]=@{PICTURE}", f"image[]=@{OTHER}", model=SEVERAL))),
    "edit_mask": lambda: drawn(edit(f"mask=@{MASK}")),
    "edit_stream": lambda: streamed(*form(f"image=@{PICTURE}", stream="true", partial_images=2)),
    "bad_parameter": lambda: refused(lambda: generate(size="1000x1000")),
    "unknown_model": lambda: refused(lambda: generate(model="nobody")),
    "wrong_key": lambda: refused(lambda: generate(key="sk-wrong")),
    "not_allowed": lambda: refused(lambda: generate(key=ONE_MODEL_KEY)),
    "full": lambda: drawn(generate("--retry", "2", door="full")),
    "limited": lambda: drawn(generate("--retry", "2", door="limited")),
    "gives_up": in_vain,
}.items():
    case(act, name)

run()
