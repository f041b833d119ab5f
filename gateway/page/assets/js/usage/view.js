// What was used, by day, and which limits hold.
import { html, useEffect, useSignal } from "../lib.js";
import { ApiError, callJson } from "../api.js";
import { keys } from "../keys.js";
import { Field, Problem } from "../ui.js";
import { Limits } from "./limits.js";

const COLUMNS = {
  day: "Day",
  tenant: "Tenant",
  key: "Key",
  requests: "Requests",
  failed: "Failed",
  images: "Pictures",
  device_seconds: "Device seconds",
  encoder_seconds: "Encoder",
  dit_seconds: "Transformer",
  decoder_seconds: "Decoder",
  enhancer_seconds: "Enhancer",
  upscaler_seconds: "Upscaler",
};
const TEXTS = ["day", "tenant", "key"];
const kind = (name) => (TEXTS.includes(name) ? "" : "number");
const OWN = { name: "own", label: "the API key's tenant", path: "v1/usage?by=key", kind: "api" };
const ALL = { name: "all", label: "every tenant (admin key)", path: "admin/usage?by=key", kind: "admin" };

export function UsageView() {
  const whose = useSignal(keys.api.value || !keys.admin.value ? OWN : ALL);
  const report = useSignal(null);
  const problem = useSignal("");
  const key = keys[whose.value.kind].value;
  useEffect(() => {
    report.value = null;
    problem.value = "";
    callJson(whose.value.path, { kind: whose.value.kind }).then(
      (found) => (report.value = found),
      (error) => (problem.value = explained(error)),
    );
  }, [whose.value, key]);
  return html`
    <h1>Usage</h1>
    <${Limits} />
    <section aria-labelledby="used-title">
      <h2 id="used-title">Used</h2>
      <${Field} id="whose" label="Of">
        <select id="whose" class="short" onChange=${(event) => (whose.value = event.target.value === "all" ? ALL : OWN)}>
          ${[OWN, ALL].map(({ name, label }) => html`<option value=${name} selected=${name === whose.value.name}>${label}</option>`)}
        </select>
      <//>
      <${Problem} text=${problem.value} />
      ${report.value && html`<${Report} report=${report.value} />`}
    </section>`;
}

function explained(error) {
  if (!(error instanceof ApiError)) throw error;
  return error.status === 404 ? "The gateway was started without an admin key (DISAGFUSION_ADMIN_KEY)." : error.message;
}

function Report({ report }) {
  if (!report.data.length) return html`<p class="muted">Nothing from ${report.start} to ${report.end}.</p>`;
  return html`
    <div class="scroll" tabindex="0" role="region" aria-label="Usage by day">
      <table>
        <caption>${report.start} to ${report.end}, days in UTC</caption>
        <thead><tr>${Object.entries(COLUMNS).map(([name, title]) => html`<th scope="col" class=${kind(name)}>${title}</th>`)}</tr></thead>
        <tbody>
          ${report.data.map((row) => html`
            <tr>${Object.keys(COLUMNS).map((name) => html`<td class=${kind(name)}>${shown(row[name])}</td>`)}</tr>`)}
        </tbody>
      </table>
    </div>`;
}

const shown = (value) => (Number.isInteger(value) || typeof value !== "number" ? value : value.toFixed(2));
