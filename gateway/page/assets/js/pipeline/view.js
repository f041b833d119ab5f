// The pipeline as it works: stages, servers, what happened, requests.
import { html, useEffect } from "../lib.js";
import { askForKey } from "../keys.js";
import { PredictionChart, UtilisationChart } from "./charts.js";
import { link, tables, watch } from "./feed.js";
import { News } from "./news.js";
import { OrderDialog } from "./orders.js";
import { Requests } from "./requests.js";
import { Servers } from "./servers.js";
import { Stages } from "./stages.js";

const WORDS = {
  "no-key": "The pipeline is shown to operators: it needs the admin key.",
  connecting: "Connecting…",
  lost: "The connection was lost; trying again…",
  absent: "The gateway was started without an admin key (DISAGFUSION_ADMIN_KEY), so there is nothing to watch.",
  refused: "The gateway refused the admin key.",
};

export function PipelineView() {
  useEffect(watch, []);
  const hasServers = Object.keys(tables.servers.value).length > 0;
  return html`
    <h1>Pipeline</h1>
    <${Link} />
    ${link.value === "live" && !hasServers && html`<p class="muted">No stage server is here.</p>`}
    ${hasServers && html`
      <${Stages} />
      <${Servers} />
      <div class="charts"><${UtilisationChart} /><${PredictionChart} /></div>
      <div class="lists"><${Requests} /><${News} /></div>`}
    <${OrderDialog} />`;
}

function Link() {
  const words = WORDS[link.value];
  const wantsKey = link.value === "no-key" || link.value === "refused";
  return html`
    <div role="status" class=${words ? "" : "hidden"} data-link=${link.value}>
      <p class="muted">${words ?? "Live"}</p>
      ${wantsKey && html`<button type="button" class="primary" onClick=${() => askForKey("admin", "")}>Enter the admin key</button>`}
    </div>`;
}
