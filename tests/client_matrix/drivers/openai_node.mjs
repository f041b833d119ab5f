// OpenAI's SDK for Node.

import OpenAI, { toFile } from "openai";
import { randomUUID } from "node:crypto";
import {
  askedUntil,
  batchLines,
  gaveUp,
  mask,
  ofBatch,
  openaiError,
  other,
  picture,
  pictures,
  refusal,
  run,
  setup,
} from "./harness.mjs";

const connect = (options) => new OpenAI({ baseURL: setup.url, apiKey: setup.key, ...options });
const client = connect({});
const png = (bytes, name) => toFile(bytes, name, { type: "image/png" });

const generate = (parameters, by = client) =>
  by.images.generate({ model: setup.model, prompt: setup.prompt, ...parameters });
const edit = async (parameters) =>
  client.images.edit({ model: setup.model, prompt: setup.prompt, image: await png(picture, "red.png"), ...parameters });
const drawn = (answers, more) => ({ pictures: answers.flatMap((answer) => pictures(answer.data)), ...more });
const refused = (call) => refusal(call, openaiError);

async function streamed(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return { events: events.map((event) => event.type), pictures: pictures(events) };
}

const quick = (seed) => generate({ seed, size: "64x64" });
const seeds = [1, 2, 3, 4];

async function oneByOne(values, call) {
  const answers = [];
  for (const value of values) answers.push(await call(value));
  return answers;
}

async function files() {
  const kept = await client.files.create({ file: await png(picture, "red.png"), purpose: "vision" });
  const listed = [];
  for await (const file of client.files.list({ purpose: "vision" })) listed.push(file.id);
  const content = Buffer.from(await (await client.files.content(kept.id)).arrayBuffer());
  return {
    id: kept.id,
    bytes: kept.bytes,
    sent: picture.length,
    listed: listed.includes(kept.id),
    same: content.equals(picture),
    deleted: (await client.files.delete(kept.id)).deleted,
  };
}

/** The SDK has no calls for jobs: its own `get` and `delete` take any path. */
async function job() {
  const posted = await generate({ async: true });
  const path = `/images/jobs/${posted.id}`;
  const ended = await askedUntil(() => client.get(path), (found) => found.completed_at !== null);
  const { deleted } = await client.delete(path);
  const afterwards = (await refused(() => client.get(path))).error.status;
  return { id: posted.id, posted: posted.status, ended: ended.status, deleted, afterwards, ...drawn([ended.response]) };
}

async function batch() {
  const lines = await client.files.create({ file: await toFile(batchLines(setup.model), "lines.jsonl"), purpose: "batch" });
  const begun = await client.batches.create({
    input_file_id: lines.id,
    endpoint: "/v1/images/generations",
    completion_window: "24h",
  });
  const over = ["completed", "failed", "expired", "cancelled"];
  const ended = await askedUntil(() => client.batches.retrieve(begun.id), (found) => over.includes(found.status));
  const text = async (file) => (await client.files.content(file)).text();
  const { completed, failed } = ended.request_counts;
  return ofBatch(ended.status, [completed, failed], await text(ended.output_file_id), await text(ended.error_file_id));
}

/** As a header: the SDK has an option `idempotencyKey`, and sends nothing of it. */
async function once() {
  const headers = { "Idempotency-Key": randomUUID() };
  const keyed = () => client.images.generate({ model: setup.model, prompt: setup.prompt }, { headers });
  return drawn(await oneByOne([1, 2], keyed));
}

/** Without retries: with them the SDK waits as long as it is told to, up to a minute, and is served. */
async function overLimit() {
  const limited = connect({ apiKey: setup.one_picture_key, maxRetries: 0 });
  return { ...drawn([await generate({}, limited)]), ...(await refused(() => generate({}, limited))) };
}

async function budget() {
  const spent = connect({ apiKey: setup.spent_key, baseURL: setup.budget });
  return { ...drawn([await generate({}, spent)]), ...(await refused(() => generate({}, spent))), tries: 2 };
}

async function models() {
  const found = [];
  for await (const model of client.models.list()) found.push(model.id);
  return { models: found, retrieved: (await client.models.retrieve("org/tiny")).id };
}

await run({
  generate: async () => drawn([await generate({})]),
  n: async () => drawn([await generate({ n: 2 })]),
  size: async () => drawn([await generate({ size: "192x128" })], { asked: "192x128" }),
  url: async () => drawn([await generate({ response_format: "url" })]),
  b64: async () => drawn([await generate({ response_format: "b64_json" })]),
  seed: async () => drawn(await oneByOne([7, 7], quick)),
  stream: async () => streamed(await generate({ stream: true, partial_images: 2 })),
  edit: async () => drawn([await edit({})]),
  edit_list: async () =>
    drawn([await edit({ model: setup.several, image: [await png(picture, "red.png"), await png(other, "blue.png")] })]),
  edit_mask: async () => drawn([await edit({ mask: await png(mask, "mask.png") })]),
  edit_stream: async () => streamed(await edit({ stream: true, partial_images: 2 })),
  models,
  files,
  job,
  batch,
  once,
  bad_parameter: () => refused(() => generate({ size: "1000x1000" })),
  unknown_model: () => refused(() => generate({ model: "nobody" })),
  wrong_key: () => refused(() => generate({}, connect({ apiKey: "sk-wrong" }))),
  not_allowed: () => refused(() => generate({}, connect({ apiKey: setup.one_model_key }))),
  over_limit: overLimit,
  budget,
  full: async () => drawn([await generate({}, connect({ baseURL: setup.full }))]),
  limited: async () => drawn([await generate({}, connect({ baseURL: setup.limited }))]),
  gives_up: async () => ({
    ...(await refused(() => generate({}, connect({ baseURL: setup.gives_up, maxRetries: 1 })))),
    tries: 2,
  }),
  concurrent: async () => drawn([...(await Promise.all(seeds.map(quick))), ...(await oneByOne(seeds, quick))]),
  abort: () =>
    gaveUp(() => generate({ n: 10, size: "512x512", steps: 50 }, connect({ timeout: 1000, maxRetries: 0 }))),
});
