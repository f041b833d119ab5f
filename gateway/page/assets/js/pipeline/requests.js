// The last hundred requests, and the life of one as a Gantt chart.
import { html, signal, useEffect, useSignal } from "../lib.js";
import { callJson } from "../api.js";
import { Problem, clockTime, seconds } from "../ui.js";
import { tables } from "./feed.js";
import { Gantt } from "./gantt.js";
import { shortId } from "./servers.js";
import { plainModel } from "./stages.js";

const PAGE = 20;
const COLUMNS = ["Request", "Model", "Arrived", "State", "Predicted", "Took"];

// The request in the address: #pipeline/REQUEST.
const chosen = signal(inAddress());
addEventListener("hashchange", () => (chosen.value = inAddress()));

function inAddress() {
  const [view, request = ""] = location.hash.slice(1).split("/");
  return view === "pipeline" ? request : "";
}

export function Requests() {
  const most = useSignal(PAGE);
  const rows = Object.entries(tables.requests.value).sort(([, one], [, other]) => other.arrived - one.arrived);
  return html`
    <section aria-labelledby="requests-title">
      <h2 id="requests-title">Requests</h2>
      ${chosen.value && html`<${Life} key=${chosen.value} request=${chosen.value} />`}
      ${!rows.length && html`<p class="muted">None yet.</p>`}
      ${rows.length > 0 && html`
        <div class="scroll" tabindex="0" role="region" aria-label="Requests">
          <table class="requests">
            <thead><tr>${COLUMNS.map((title, index) => html`<th scope="col" class=${index > 3 ? "number" : ""}>${title}</th>`)}</tr></thead>
            <tbody>${rows.slice(0, most.value).map(([id, row]) => html`<${Line} key=${id} id=${id} row=${row} />`)}</tbody>
          </table>
        </div>`}
      ${rows.length > most.value && html`
        <button type="button" onClick=${() => (most.value = Infinity)}>Show all ${rows.length}</button>`}
    </section>`;
}

function Line({ id, row }) {
  return html`
    <tr data-state=${row.state} aria-current=${id === chosen.value ? "true" : null}>
      <td><a href=${`#pipeline/${id}`} title=${id}>${shortId(id)}</a></td>
      <td>${plainModel(row.model)}${row.pictures > 1 ? ` × ${row.pictures}` : ""}</td>
      <td>${clockTime(row.arrived)}</td>
      <td>${row.state}${row.why && html`<br /><small>${row.why}</small>`}</td>
      <td class="number">${seconds(row.predicted)}</td>
      <td class="number">${seconds(row.took)}</td>
    </tr>`;
}

// Looked up when it is chosen, and again when its state changes.
function Life({ request }) {
  const life = useSignal(null);
  const problem = useSignal("");
  const row = tables.requests.value[request];
  useEffect(() => {
    callJson(`admin/requests/${encodeURIComponent(request)}`, { kind: "admin" }).then(
      (found) => (life.value = found),
      (error) => (problem.value = error.message),
    );
  }, [request, row?.state]);
  return html`
    <div class="card life">
      <div class="row"><h3>Request ${shortId(request)}</h3><a class="button quiet" href="#pipeline">Close</a></div>
      <${Problem} text=${problem.value} />
      ${life.value && html`
        <${Gantt} attempts=${life.value.attempts} />
        <${Decisions} decisions=${life.value.decisions} />`}
    </div>`;
}

function Decisions({ decisions }) {
  return html`
    <details>
      <summary>Why: ${decisions.length} decisions</summary>
      <ol class="decisions">
        ${decisions.map(({ at, decision, reason, server, job }) => html`
          <li><time>${clockTime(at)}</time> <strong>${decision ?? "noted"}</strong> ${last(job)} ${server && `on ${first(server)}`}: ${reason}</li>`)}
      </ol>
    </details>`;
}

const last = (path) => (path ? path.slice(path.lastIndexOf("/") + 1) : "");
const first = (path) => path.slice(0, path.lastIndexOf("/"));
