// What happened to the fleet, and requests that got no picture, newest first.
import { html } from "../lib.js";
import { clockTime } from "../ui.js";
import { tables } from "./feed.js";

export function News() {
  const lines = Object.entries(tables.news.value).sort(([one], [other]) => other - one);
  return html`
    <section aria-labelledby="news-title">
      <h2 id="news-title">What happened</h2>
      ${!lines.length && html`<p class="muted">Nothing yet.</p>`}
      <ol class="news" tabindex="0" aria-labelledby="news-title">
        ${lines.map(([key, { at, kind, server, text }]) => html`
          <li key=${key} data-kind=${kind}><time>${clockTime(at)}</time> ${server && html`<strong>${server}</strong>`} ${text}</li>`)}
      </ol>
    </section>`;
}
