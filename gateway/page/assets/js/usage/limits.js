// What the API key may still ask for.
import { html, useEffect, useSignal } from "../lib.js";
import { callJson } from "../api.js";
import { keys } from "../keys.js";
import { seconds } from "../ui.js";

const NAMES = {
  requests_per_minute: "Requests per minute",
  images_per_minute: "Pictures per minute",
  concurrent_requests: "Requests at a time",
  device_seconds_per_month: "Device seconds per month",
};

export function Limits() {
  const found = useSignal(null);
  const problem = useSignal("");
  const key = keys.api.value;
  useEffect(() => {
    callJson("v1/limits").then(
      (limits) => (found.value = limits),
      (error) => (problem.value = error.message),
    );
  }, [key]);
  return html`
    <section aria-labelledby="limits-title">
      <h2 id="limits-title">Limits</h2>
      ${problem.value && html`<p class="muted">${problem.value}</p>`}
      ${found.value && html`<${Table} limits=${found.value.limits} />`}
    </section>`;
}

function Table({ limits }) {
  const known = Object.keys(NAMES).filter((name) => limits[name]);
  if (!known.length) return html`<p class="muted">Nothing is limited.</p>`;
  return html`
    <div class="scroll" tabindex="0" role="region" aria-label="Limits">
      <table>
        <thead><tr><th scope="col">Limit</th><th scope="col" class="number">Allowed</th><th scope="col" class="number">Left</th><th scope="col" class="number">More in</th></tr></thead>
        <tbody>${known.map((name) => html`<${Row} label=${NAMES[name]} limit=${limits[name]} />`)}</tbody>
      </table>
    </div>`;
}

function Row({ label, limit }) {
  const rounded = (value) => (Number.isInteger(value) ? value : value.toFixed(1));
  return html`
    <tr>
      <th scope="row">${label}</th>
      <td class="number">${rounded(limit.limit)}</td>
      <td class="number">${rounded(limit.remaining)}
        <meter class="left" min="0" max=${limit.limit} value=${limit.remaining} aria-label=${`${label} left`}></meter></td>
      <td class="number">${limit.reset_seconds ? seconds(limit.reset_seconds) : "–"}</td>
    </tr>`;
}
