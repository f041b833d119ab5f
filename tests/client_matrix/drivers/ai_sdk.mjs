// The AI SDK with whichever of its two providers is installed beside this file.

import { randomUUID } from "node:crypto";
import { generateImage, uploadFile } from "ai";
import { gaveUp, mask, other, picture, refusal, run, setup } from "./harness.mjs";

const compatible = setup.name.endsWith("compatible");
const module = await import(compatible ? "@ai-sdk/openai-compatible" : "@ai-sdk/openai");

function model(id, options) {
  const settings = { name: "matrix", baseURL: setup.url, apiKey: setup.key, ...options };
  return (compatible ? module.createOpenAICompatible(settings) : module.createOpenAI(settings)).imageModel(id);
}

const generate = ({ id = setup.model, options, ...parameters } = {}) =>
  generateImage({ model: model(id, options), prompt: setup.prompt, ...parameters });
const edit = (prompt, id) => generate({ id, prompt: { text: setup.prompt, ...prompt } });
const drawn = (answers, more) => ({
  pictures: answers.flatMap((answer) => answer.images.map((image) => ({ b64: image.base64 }))),
  ...more,
});

/** What is retried in vain comes wrapped; the envelope is kept as `data`. */
function describe(error) {
  const last = error.lastError ?? error;
  const { type, code, param } = last.data?.error ?? {};
  return { status: last.statusCode, message: last.message, ...(code && { code }), ...(type && { type }), ...(param && { param }) };
}
const refused = (parameters) => refusal(() => generate(parameters), describe);

const quick = (seed) => generate({ size: "64x64", providerOptions: { matrix: { seed } } });
const seeds = [1, 2, 3, 4];

async function oneByOne(values, call) {
  const answers = [];
  for (const value of values) answers.push(await call(value));
  return answers;
}

async function upload() {
  const api = module.createOpenAI({ baseURL: setup.url, apiKey: setup.key });
  const kept = await uploadFile({ api, data: picture, mediaType: "image/png", filename: "red.png" });
  return { id: kept.providerReference.openai, sent: picture.length };
}

async function once() {
  const headers = { "Idempotency-Key": randomUUID() };
  return drawn(await oneByOne([headers, headers], (key) => generate({ headers: key })));
}

async function overLimit() {
  const limited = { options: { apiKey: setup.one_picture_key }, maxRetries: 0 };
  return { ...drawn([await generate(limited)]), ...(await refused(limited)) };
}

/** It goes by the status alone, and tries again where it is told not to. */
async function budget() {
  const spent = { options: { apiKey: setup.spent_key, baseURL: setup.budget }, maxRetries: 1 };
  return { ...drawn([await generate(spent)]), ...(await refused(spent)), tries: 3 };
}

const noSeed = "drops the seed";
const noCall = "has no such call";

await run({
  generate: async () => drawn([await generate()]),
  n: async () => drawn([await generate({ n: 2 })]),
  size: async () => drawn([await generate({ size: "192x128" })], { asked: "192x128" }),
  url: "hands on the pictures' bytes, never urls",
  b64: async () => drawn([await generate({ id: "gpt-image-1" })]),
  seed: compatible ? async () => drawn(await oneByOne([7, 7], quick)) : noSeed,
  stream: noCall,
  edit: async () => drawn([await edit({ images: [picture] })]),
  edit_list: async () => drawn([await edit({ images: [picture, other] }, setup.several)]),
  edit_mask: async () => drawn([await edit({ images: [picture], mask })]),
  edit_stream: noCall,
  models: noCall,
  files: compatible ? noCall : upload,
  job: noCall,
  batch: noCall,
  once,
  bad_parameter: () => refused({ size: "1000x1000" }),
  unknown_model: () => refused({ id: "nobody" }),
  wrong_key: () => refused({ options: { apiKey: "sk-wrong" } }),
  not_allowed: () => refused({ options: { apiKey: setup.one_model_key } }),
  over_limit: overLimit,
  budget,
  full: async () => drawn([await generate({ options: { baseURL: setup.full } })]),
  limited: async () => drawn([await generate({ options: { baseURL: setup.limited } })]),
  gives_up: async () => ({
    ...(await refused({ options: { baseURL: setup.gives_up }, maxRetries: 1 })),
    tries: 2,
  }),
  concurrent: compatible
    ? async () => drawn([...(await Promise.all(seeds.map(quick))), ...(await oneByOne(seeds, quick))])
    : noSeed,
  abort: () => gaveUp(() => generate({ n: 10, size: "512x512", abortSignal: AbortSignal.timeout(1000) })),
});
