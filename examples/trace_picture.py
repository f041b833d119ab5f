"""``python -m examples.trace_picture OUT.png``: one request to the bundled model, drawn from the spans that it left.

Starts a gateway with stage servers (``--local``) that send their spans here, as they would to a collector.
"""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import httpx
import matplotlib as mpl
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

mpl.use("Agg")
from matplotlib import pyplot

BODY = {"prompt": "a green heart on white", "size": "256x256", "seed": 7}
PATIENCE = 120.0
"""Seconds for the picture."""
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")
Told = tuple[str, Span]
"""Process, span."""


class Collector(BaseHTTPRequestHandler):
    spans: ClassVar[list[Told]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        request = ExportTraceServiceRequest.FromString(
            gzip.decompress(body) if self.headers["content-encoding"] == "gzip" else body
        )
        for resource in request.resource_spans:
            named = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.spans.extend((named["service.name"], span) for scope in resource.scope_spans for span in scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


def one_request(collector: str) -> None:
    """Serve it, and end: then every process has sent its spans."""
    settings = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{collector}/v1/traces", "PYTHONUNBUFFERED": "1"}
    command = (sys.executable, "-m", "gateway", "--local", "--port", "0")
    with subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True) as gateway:  # noqa: S603 # ours
        printed = gateway.stdout or ()
        url = next(found[1] for line in printed if (found := re.search(r"Ready at (\S+)\. ", line)))
        try:
            httpx.post(f"{url}/v1/images/generations", json=BODY, timeout=PATIENCE).raise_for_status()
        finally:
            gateway.terminate()


def in_order(spans: list[Told]) -> list[tuple[int, str, Span]]:
    """Depth, process, span: each below its parent, by time."""
    ids = {span.span_id for _, span in spans}
    told = sorted(spans, key=lambda each: each[1].start_time_unix_nano)

    def below(parent: bytes, depth: int) -> list[tuple[int, str, Span]]:
        rows: list[tuple[int, str, Span]] = []
        for process, span in told:
            if span.parent_span_id == parent or (not parent and span.parent_span_id not in ids):
                rows += [(depth, process, span), *below(span.span_id, depth + 1)]
        return rows

    return below(b"", 0)


def draw(spans: list[Told], path: str) -> None:
    rows = in_order(spans)
    colours = dict(zip(dict.fromkeys(process for _, process, _ in rows), COLOURS, strict=False))
    began = min(span.start_time_unix_nano for _, _, span in rows)
    figure, axes = pyplot.subplots(figsize=(10, 0.28 * len(rows) + 1), layout="constrained")
    for row, (_, process, span) in enumerate(rows):
        start, end = ((at - began) / 1e6 for at in (span.start_time_unix_nano, span.end_time_unix_nano))
        axes.barh(row, max(end - start, 1), left=start, color=colours[process])  # a millisecond can be seen
        axes.annotate(f" {end - start:.0f} ms", (end, row), va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), ["    " * depth + span.name for depth, _, span in rows], ha="left", fontsize=8)
    axes.tick_params(axis="y", pad=210, length=0)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("milliseconds since the request came")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    axes.legend(handles, list(colours), loc="lower left")
    figure.savefig(path, dpi=110)


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    one_request(f"http://127.0.0.1:{server.server_port}")
    requested = {span.trace_id for _, span in Collector.spans if span.name.startswith("generate_content")}
    draw([each for each in Collector.spans if each[1].trace_id in requested], sys.argv[1])


if __name__ == "__main__":
    main()
