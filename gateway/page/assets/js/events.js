// Server-sent events, read through fetch: EventSource can send no Authorization header, nor a body.

// Yields {comment} or {event, data} (data still as text) until the stream ends.
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) yield parsed(block);
    }
  } finally {
    reader.cancel().catch(() => {}); // where the reader is done with before the stream is
  }
}

function parsed(block) {
  if (block.startsWith(":")) return { comment: block.slice(1).trim() };
  const found = { event: "message", data: "" };
  for (const line of block.split("\n")) {
    if (line.startsWith("event: ")) found.event = line.slice(7);
    else if (line.startsWith("data: ")) found.data += line.slice(6);
  }
  return found;
}
