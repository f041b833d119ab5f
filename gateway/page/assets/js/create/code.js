// The form's request as commands to copy. A key is never part of it: both read it from the environment.
import { html } from "../lib.js";
import { CopyButton } from "../ui.js";
import { keys } from "../keys.js";
import { asJson, request } from "./form.js";

const PYTHON_OWN = new Set(["model", "prompt", "size", "n"]); // parameters that OpenAI's client has itself

export function CodeSamples() {
  const { path, fields, pictures, mask } = request.value;
  const asked = { base: new URL(".", location.href), path, fields, names: pictures.map((each) => each.name), mask };
  return html`
    <details class="code">
      <summary>This request as code</summary>
      <${Sample} title="curl" text=${curl(asked)} />
      <${Sample} title="Python" text=${python(asked)} />
    </details>`;
}

function Sample({ title, text }) {
  return html`
    <section>
      <div class="row"><h3>${title}</h3><${CopyButton} text=${text} label=${`Copy ${title}`} /></div>
      <pre tabindex="0" aria-label=${`${title} code`}><code>${text}</code></pre>
    </section>`;
}

const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;

function curl({ base, path, fields, names, mask }) {
  const lines = [`curl ${quoted(base + path)}`];
  if (keys.api.value) lines.push('-H "authorization: Bearer $OPENAI_API_KEY"');
  if (!names.length) lines.push("-H 'content-type: application/json'", `-d ${quoted(asJson(fields))}`);
  else {
    for (const [name, value] of Object.entries(fields)) lines.push(`--form-string ${quoted(`${name}=${value}`)}`);
    for (const name of names) lines.push(`-F ${quoted(`image[]=@"${name}"`)}`);
    if (mask) lines.push("-F mask=@mask.png");
  }
  return `${lines.join(" \\\n  ")} \\\n  | jq -r '.data[0].b64_json' | base64 -d > picture.png`;
}

function python({ base, fields, names, mask }) {
  const key = keys.api.value ? "" : ', api_key="none"';
  const given = Object.entries(fields).filter(([name]) => PYTHON_OWN.has(name));
  const extra = Object.entries(fields).filter(([name]) => !PYTHON_OWN.has(name));
  const lines = given.map(([name, value]) => `    ${name}=${JSON.stringify(value)},`);
  if (names.length) lines.push(`    image=[${names.map((name) => `open(${JSON.stringify(name)}, "rb")`).join(", ")}],`);
  if (mask) lines.push('    mask=open("mask.png", "rb"),');
  if (extra.length) lines.push(`    extra_body=${asJson(Object.fromEntries(extra))},`);
  return [
    "import base64",
    "from pathlib import Path",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(`${base}v1`)}${key})`,
    `answer = client.images.${names.length ? "edit" : "generate"}(`,
    ...lines,
    ")",
    'Path("picture.png").write_bytes(base64.b64decode(answer.data[0].b64_json))',
  ].join("\n");
}
