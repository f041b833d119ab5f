// What the drivers in JavaScript share: cases in, one JSON line per case out, as in harness.py.

import { readFileSync } from "node:fs";

export const setup = JSON.parse(readFileSync(process.argv[2], "utf8"));
export const [picture, other, mask] = [setup.picture, setup.other, setup.mask].map((path) => readFileSync(path));

/** Of OpenAI's `data`. */
export const pictures = (items) => items.map((item) => (item.url ? { url: item.url } : { b64: item.b64_json }));

/** The lines of an input file for a batch: two that can be done and one that cannot. */
export function batchLines(model) {
  const bodies = { one: { seed: 1 }, two: { seed: 2 }, bad: { size: "1000x1000" } };
  const line = ([custom_id, body]) =>
    JSON.stringify({
      custom_id,
      method: "POST",
      url: "/v1/images/generations",
      body: { model, prompt: setup.prompt, ...body },
    });
  return Buffer.from(Object.entries(bodies).map(line).join("\n"));
}

/** What its two files hold, in what `done_by_the_line` wants to know. */
export function ofBatch(ended, counts, output, errors) {
  const parsed = (text) => text.trim().split("\n").map((line) => JSON.parse(line));
  return {
    ended,
    counts,
    pictures: parsed(output).flatMap((line) => pictures(line.response.body.data)),
    errors: Object.fromEntries(parsed(errors).map((line) => [line.custom_id, line.response.body.error.code])),
  };
}

/** The first thing looked at that is over; asked again after a moment, as its users do. */
export async function askedUntil(look, over) {
  for (;;) {
    const found = await look();
    if (over(found)) return found;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** The error that `call` must end in. */
export async function refusal(call, describe) {
  let answer;
  try {
    answer = await call();
  } catch (error) {
    return { error: describe(error) };
  }
  return { answer: String(JSON.stringify(answer)).slice(0, 200) };
}

/** Of every error of OpenAI's SDK. */
export const openaiError = ({ status, type, code, param, message }) => ({ status, type, code, param, message });

/** What `call` does once it is no longer waited for. */
export async function gaveUp(call) {
  let answer;
  try {
    answer = await call();
  } catch (error) {
    return { gave_up: error.name === "Error" ? error.constructor.name : error.name };
  }
  return { answer: String(JSON.stringify(answer)).slice(0, 200) };
}

/** `cases`: name → function that tells what the client saw, or a text that says why the client cannot. */
export async function run(cases) {
  for (const name of setup.cases) {
    let line;
    try {
      line = typeof cases[name] === "string" ? { cannot: cases[name] } : { saw: await cases[name]() };
    } catch (error) {
      line = { failed: `${error.name}: ${error.message}`.slice(0, 600), trace: String(error.stack) };
    }
    console.log(JSON.stringify({ case: name, ...line }));
  }
}
