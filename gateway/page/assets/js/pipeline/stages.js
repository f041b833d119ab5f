// The figure: the stages of each model, with their queues and what is handed from one to the next.
import { html } from "../lib.js";
import { bytes } from "../ui.js";
import { tables } from "./feed.js";

const MOST_DOTS = 24;

export const ROLES = { enhancer: "Enhancer", encoder: "Encoder", dit: "Transformer", decoder: "Decoder", upscaler: "Upscaler" };

export const plainModel = (key) => key.split("@")[0];

export function Stages() {
  const models = [...new Set(Object.values(tables.stages.value).map((stage) => stage.model))];
  return models.map((model) => html`<${Model} key=${model} model=${model} />`);
}

function Model({ model }) {
  const stages = Object.keys(ROLES).map((role) => tables.stages.value[`${model} ${role}`]).filter(Boolean);
  const plan = planOf(model);
  return html`
    <section aria-label=${`Stages of ${plainModel(model)}`}>
      <h2>${plainModel(model)}</h2>
      <ol class="stages">${stages.map((stage) => html`<${Stage} key=${stage.role} stage=${stage} />`)}</ol>
      ${plan?.verdict && html`<p class="muted">Roles: ${plan.verdict}</p>`}
    </section>`;
}

// Models that share servers have one plan, under all their names; "" is why there is none at all.
function planOf(model) {
  const found = Object.entries(tables.plans.value).find(([names]) => !names || names.split(", ").includes(model));
  return found?.[1];
}

function Stage({ stage }) {
  const { role, waiting, serving, computing, committed, handed_jobs: jobs, handed_bytes: size } = stage;
  const isStuck = !serving && waiting > 0;
  return html`
    <li class="card stage" data-role=${role}>
      <h3>${ROLES[role]}</h3>
      <p class="queue"><strong>${waiting}</strong> waiting</p>
      <p class="dots" aria-hidden="true">${"●".repeat(Math.min(waiting, MOST_DOTS))}${waiting > MOST_DOTS ? "…" : ""}</p>
      <p>${computing} computing, ${committed} next</p>
      <p class=${isStuck ? "problem" : ""}>${serving} server${serving === 1 ? "" : "s"}${isStuck ? ": nobody serves this role" : ""}</p>
      <p class="muted">Handed here in the last minute: ${jobs ? `${jobs} × ${bytes(Math.round(size / jobs))}` : "nothing"}</p>
    </li>`;
}
