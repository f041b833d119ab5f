// One request under way: events in, what the page shows of it out.
import { batch, signal } from "../lib.js";
import { call } from "../api.js";
import { eventsOf } from "../events.js";
import { announce } from "../ui.js";
import { asJson, request, streaming } from "./form.js";
import { keepPicture } from "./store.js";

// state: idle, sending, waiting, drawing, done, failed, cancelled. Pictures: {url, partial, step, steps} by index.
export const run = signal({ state: "idle", pictures: [] });

let abort = null;

export const isRunning = () => ["sending", "waiting", "drawing"].includes(run.value.state);

export function cancel() {
  abort?.abort();
}

export async function start() {
  const asked = { ...request.peek(), created: Date.now() };
  abort = new AbortController();
  forget(run.peek().pictures);
  const count = asked.fields.n ?? 1;
  run.value = { state: "sending", pictures: Array.from({ length: count }, () => ({})), ends: null, began: Date.now() };
  announce("Request sent");
  try {
    const response = await call(asked.path, { method: "POST", signal: abort.signal, ...body(asked) });
    for await (const event of eventsOf(response)) await take(event, asked);
    finish();
  } catch (error) {
    if (error.name === "AbortError") end("cancelled", "Cancelled");
    else end("failed", error.message);
  }
}

function body(asked) {
  const fields = { ...asked.fields, ...streaming() };
  if (!asked.pictures.length) return { headers: { "content-type": "application/json" }, body: asJson(fields) };
  const data = new FormData();
  for (const [name, value] of Object.entries(fields)) data.append(name, String(value));
  for (const picture of asked.pictures) data.append("image[]", picture.blob, picture.name);
  if (asked.mask) data.append("mask", asked.mask, "mask.png");
  return { body: data };
}

async function take(event, asked) {
  if (event.comment !== undefined) return heard(event.comment);
  const told = JSON.parse(event.data);
  if (event.event === "error") throw new Error(told.error.message);
  const index = told.image_index ?? 0;
  const blob = picture(told.b64_json, told.output_format);
  if (event.event.endsWith(".partial_image")) {
    show(index, { url: URL.createObjectURL(blob), partial: true });
  } else if (event.event.endsWith(".completed")) {
    const seed = seedIn(event.data);
    const { size, revised_prompt: revised } = told;
    show(index, { url: URL.createObjectURL(blob), partial: false, seed, size, revised });
    const { created, fields } = asked;
    await keepPicture({ blob, created, fields: plain(fields), seed, size, revised, edited: asked.pictures.length > 0 });
  }
}

// Comments tell what no event of OpenAI's does: docs/api.md, Streaming.
function heard(comment) {
  const admitted = comment.match(/^admitted, predicted ([\d.]+) s$/);
  const waiting = comment.match(/^waiting, (\d+) ahead, about ([\d.]+) s left$/);
  const step = comment.match(/^image (\d+) step (\d+)\/(\d+)$/);
  if (admitted) change({ state: "waiting", ends: Date.now() + 1000 * admitted[1] });
  if (waiting) change({ state: "waiting", ahead: Number(waiting[1]), ends: Date.now() + 1000 * waiting[2] });
  if (step) {
    change({ state: "drawing" });
    show(Number(step[1]), { step: Number(step[2]), steps: Number(step[3]) });
  }
}

function change(more) {
  run.value = { ...run.peek(), ...more };
}

function show(index, more) {
  const before = run.peek().pictures[index] ?? {};
  if (more.url && before.url) URL.revokeObjectURL(before.url);
  const pictures = run.peek().pictures.map((each, at) => (at === index ? { ...each, ...more } : each));
  batch(() => change({ pictures }));
}

function finish() {
  const { pictures } = run.peek();
  if (pictures.every((each) => each.url && !each.partial)) end("done", `Done: ${pictures.length} picture(s)`);
  else end("failed", "The connection ended before the pictures were finished.");
}

function end(state, words) {
  const problem = state === "failed" ? words : "";
  change({ state, problem, took: (Date.now() - run.peek().began) / 1000 });
  announce(words);
}

function forget(shown) {
  for (const { url } of shown) if (url) URL.revokeObjectURL(url);
}

function picture(base64, format) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type: `image/${format}` });
}

// As digits: JSON.parse would round it.
function seedIn(data) {
  return data.match(/"seed":(\d+)/)?.[1] ?? "";
}

// What the gallery's database can keep, BigInt included, as text.
function plain(fields) {
  return Object.fromEntries(
    Object.entries(fields).map(([name, value]) => [name, typeof value === "bigint" ? String(value) : value]),
  );
}
