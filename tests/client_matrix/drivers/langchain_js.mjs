// LangChain's `DallEAPIWrapper` for JavaScript: a tool that takes a prompt and gives a url, or base64.

import { DallEAPIWrapper } from "@langchain/openai";
import { openaiError, refusal, run, setup } from "./harness.mjs";

const generate = (fields) =>
  new DallEAPIWrapper({ model: "dall-e-3", baseUrl: setup.url, apiKey: setup.key, size: "128x128", ...fields }).invoke(
    setup.prompt,
  );
const drawn = (urls, more) => ({ pictures: urls.map((url) => ({ url })), ...more });
const refused = (fields) => refusal(() => generate(fields), openaiError);

async function budget() {
  const spent = { apiKey: setup.spent_key, baseUrl: setup.budget };
  return { ...drawn([await generate(spent)]), ...(await refused(spent)), tries: 2 };
}

const picturesOnly = "makes pictures, nothing else";
const noPassing = "passes on neither a seed nor stream";

await run({
  generate: async () => drawn([await generate({})]),
  n: async () => drawn((await generate({ n: 2 })).map((content) => content.image_url)),
  size: async () => drawn([await generate({ size: "192x128" })], { asked: "192x128" }),
  url: async () => drawn([await generate({})]),
  b64: async () => ({ pictures: [{ b64: await generate({ responseFormat: "b64_json" }) }] }),
  seed: noPassing,
  stream: noPassing,
  edit: picturesOnly,
  edit_list: picturesOnly,
  edit_mask: picturesOnly,
  edit_stream: picturesOnly,
  models: picturesOnly,
  files: picturesOnly,
  job: picturesOnly,
  batch: picturesOnly,
  once: "passes on no header of a request",
  bad_parameter: () => refused({ size: "1000x1000" }),
  unknown_model: () => refused({ model: "nobody" }),
  wrong_key: () => refused({ apiKey: "sk-wrong" }),
  not_allowed: () => refused({ apiKey: setup.one_model_key }),
  over_limit: "waits as long as it is told to and is served; its retries cannot be set",
  budget,
  full: async () => drawn([await generate({ baseUrl: setup.full })]),
  limited: async () => drawn([await generate({ baseUrl: setup.limited })]),
  gives_up: async () => ({ ...(await refused({ baseUrl: setup.gives_up })), tries: 3 }),
  concurrent: noPassing,
  abort: "has neither a timeout nor a signal for its requests",
});
