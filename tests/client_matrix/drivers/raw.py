"""What the drivers share that send requests as an application does, without a client library of their own."""

from __future__ import annotations

import httpx
from harness import SETUP, pictures, refusal


class Refused(Exception):
    def __init__(self, answer):
        super().__init__(answer.text)
        self.told = {"status": answer.status_code, **answer.json()["error"]}


def send(method, path, door="url", **request):
    """The JSON of the answer. Raises ``Refused``."""
    answer = httpx.request(method, f"{SETUP[door]}/{path}", timeout=request.pop("timeout", 120), **request)
    if answer.is_error:
        raise Refused(answer)
    return answer.json()


def drawn(*answers, **more):
    return {"pictures": [picture for answer in answers for picture in pictures(answer["data"])], **more}


def refused(call):
    return refusal(call, lambda error: error.told)
