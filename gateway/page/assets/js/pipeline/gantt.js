// A request's attempts over servers and time. Each: waiting for its inputs or the device (pale), on the device (full).
import { html } from "../lib.js";
import { bytes, seconds } from "../ui.js";
import { ROLES } from "./stages.js";

const WIDTH = 640;
const LEFT = 110;
const RIGHT = 24;
const ROW = 30;
const BAR = 18;
const FOOT = 24;
const TICKS = 4;
const LONGEST_NAME = 15;
const COLUMNS = ["Job", "Server", "Sent", "Inputs there", "Computed", "Ended", "How", "Handed over"];

export function Gantt({ attempts }) {
  if (!attempts.length) return html`<p class="muted">None of its jobs was sent to a server.</p>`;
  const servers = [...new Set(attempts.map((attempt) => attempt.server))];
  const begin = attempts[0].sent;
  const end = Math.max(...attempts.map(endOf), begin + 0.001);
  const x = (at) => LEFT + ((at - begin) / (end - begin)) * (WIDTH - LEFT - RIGHT);
  const height = servers.length * ROW + FOOT;
  const ticks = Array.from({ length: TICKS + 1 }, (_, tick) => ((end - begin) * tick) / TICKS);
  const title = `Gantt chart: ${attempts.length} attempts on ${servers.length} servers in ${seconds(end - begin)}`;
  return html`
    <svg class="gantt" viewBox=${`0 0 ${WIDTH} ${height}`} role="img" aria-label=${title}>
      ${servers.map((server, row) => html`
        <text x="0" y=${row * ROW + 20}>${shortName(server)}</text>
        <line class="grid" x1=${LEFT} x2=${WIDTH - RIGHT} y1=${(row + 1) * ROW} y2=${(row + 1) * ROW} />`)}
      ${ticks.map((after) => html`<${Tick} x=${x(begin + after)} height=${height} label=${seconds(after)} />`)}
      ${attempts.map((attempt) => html`<${Bar} attempt=${attempt} x=${x} y=${servers.indexOf(attempt.server) * ROW + 6} end=${end} />`)}
    </svg>
    <p class="legend">
      ${Object.entries(ROLES).map(([role, label]) => html`<span class="chip" data-role=${role}>${label}</span> `)}
      pale: waits for its inputs or the device
    </p>
    <${Figures} attempts=${attempts} begin=${begin} />`;
}

function endOf(attempt) {
  return Math.max(attempt.ended ?? 0, attempt.fetched ?? 0, attempt.sent, ...attempt.computing.flat());
}

function shortName(server) {
  return server.length > LONGEST_NAME ? `${server.slice(0, LONGEST_NAME - 1)}…` : server;
}

function Tick({ x, height, label }) {
  return html`
    <line class="grid" x1=${x} x2=${x} y1="0" y2=${height - 18} />
    <text class="tick" x=${x} y=${height - 4}>${label}</text>`;
}

function Bar({ attempt, x, y, end }) {
  const until = attempt.ended ?? end;
  const width = (from, to) => Math.max(1, x(to) - x(from));
  return html`
    <g data-role=${attempt.role}>
      <title>${attempt.job} on ${attempt.server}: ${attempt.how || "under way"}</title>
      <rect class="held" x=${x(attempt.sent)} y=${y} width=${width(attempt.sent, until)} height=${BAR} />
      ${attempt.computing.map(([from, to = until]) => html`<rect x=${x(from)} y=${y} width=${width(from, to)} height=${BAR} />`)}
    </g>`;
}

// The same in figures, also for those who cannot see the chart.
function Figures({ attempts, begin }) {
  const after = (at) => (at == null ? "–" : `${(at - begin).toFixed(2)} s`);
  const stretch = ([from, to]) => `${after(from)} to ${to == null ? "now" : after(to)}`;
  return html`
    <details>
      <summary>Figures</summary>
      <div class="scroll" tabindex="0" role="region" aria-label="Attempts">
        <table>
          <thead><tr>${COLUMNS.map((title) => html`<th scope="col">${title}</th>`)}</tr></thead>
          <tbody>${attempts.map((each) => html`
            <tr>
              <td>${each.job}</td><td>${each.server}</td><td>${after(each.sent)}</td><td>${after(each.fetched)}</td>
              <td>${each.computing.map(stretch).join("; ") || "–"}</td><td>${after(each.ended)}</td>
              <td>${each.how || "under way"}</td><td>${each.handed_bytes ? bytes(each.handed_bytes) : "–"}</td>
            </tr>`)}
          </tbody>
        </table>
      </div>
    </details>`;
}
