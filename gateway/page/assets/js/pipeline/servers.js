// Every stage server: roles, what it computes and what comes next, how busy it is, and orders to it.
import { html } from "../lib.js";
import { bytes } from "../ui.js";
import { tables } from "./feed.js";
import { askOrder } from "./orders.js";
import { ROLES, plainModel } from "./stages.js";

const COMPUTES = ["running", "paused"];
const SLOW = 1.3; // times its class's pace: worth a remark

export function Servers() {
  const rows = Object.entries(tables.servers.value).sort(([, one], [, other]) => one.name.localeCompare(other.name));
  return html`
    <section aria-labelledby="servers-title">
      <h2 id="servers-title">Stage servers</h2>
      <ul class="servers">${rows.map(([id, server]) => html`<${Server} key=${id} server=${server} />`)}</ul>
    </section>`;
}

function Server({ server }) {
  const now = server.jobs.filter((job) => COMPUTES.includes(job.state));
  const next = server.jobs.filter((job) => !COMPUTES.includes(job.state));
  const order = (what) => () => askOrder(what, server);
  return html`
    <li class="card server" data-server=${server.name}>
      <div class="row"><h3>${server.name}</h3><${Chips} server=${server} /></div>
      <p class="muted">${plainModel(server.model)} on ${server.device_class}</p>
      <${Share} server=${server} />
      <${Jobs} title="Computes" jobs=${now} />
      <${Jobs} title="Fetches ahead" jobs=${next} />
      <${Remarks} server=${server} />
      <div class="row">
        <button type="button" class="quiet" onClick=${order("roles")}>Roles…<span class="hidden"> of ${server.name}</span></button>
        <button type="button" class="quiet" onClick=${order(server.pinned ? "unpin" : "pin")}>
          ${server.pinned ? "Unpin" : "Pin"}<span class="hidden"> ${server.name}</span></button>
        <button type="button" class="quiet" onClick=${order("drain")}>Drain…<span class="hidden"> ${server.name}</span></button>
      </div>
    </li>`;
}

function Chips({ server }) {
  const wanted = server.switching_to;
  return html`
    <span class="chips">
      ${server.roles.map((role) => html`
        <span class="chip" data-role=${role} data-idle=${!server.serving.includes(role)}>${ROLES[role]}</span>`)}
      ${!server.roles.length && !wanted && html`<span class="chip">no role now</span>`}
      ${wanted && html`<span class="chip wanted">→ ${wanted.map((role) => ROLES[role]).join(", ")}</span>`}
      ${server.pinned && html`<span class="chip">pinned</span>`}
      ${server.leaving && html`<span class="chip bad">leaving</span>`}
      ${server.suspect && html`<span class="chip bad">suspect</span>`}
    </span>`;
}

function Share({ server }) {
  const share = server.busy ?? 0;
  return html`
    <div class="share"><span>Busy ${Math.round(100 * share)} %</span>
      <meter min="0" max="1" value=${share} aria-label=${`${server.name}: busy`}></meter>
    </div>`;
}

function Jobs({ title, jobs }) {
  if (!jobs.length) return null;
  return html`<p class="jobs">${title}: ${jobs.map((job) => html`<${Job} key=${job.job} ...${job} />`)}</p>`;
}

function Job({ job, steps, state }) {
  const cut = job.lastIndexOf("/");
  const request = job.slice(0, cut);
  const words = `${job.slice(cut + 1)}${steps ? `, step ${steps}` : ""}${state === "paused" ? ", paused" : ""}`;
  return html`<span class="job"><a href=${`#pipeline/${request}`}>${shortId(request)}</a> ${words}</span>`;
}

function Remarks({ server }) {
  const remarks = [];
  if (server.shares_device_with?.length) remarks.push(`Shares its device with ${server.shares_device_with.join(", ")}`);
  if (server.why_set_aside) remarks.push(server.why_set_aside);
  if (server.speed_factor > SLOW) remarks.push(`Takes ${server.speed_factor.toFixed(1)} times as long as its class`);
  if (server.in_host_memory.length) remarks.push(`In host memory: ${server.in_host_memory.join(", ")}`);
  if (server.store_bytes) remarks.push(`Output store: ${bytes(server.store_bytes)} of ${bytes(server.store_capacity)}`);
  return remarks.map((text) => html`<p class="muted">${text}</p>`);
}

export const shortId = (request) => (request.length > 16 ? `${request.slice(0, 12)}…` : request);
