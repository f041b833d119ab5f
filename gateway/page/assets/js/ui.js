// Small parts that several views use.
import { html, signal } from "./lib.js";

const announced = signal("");

// For screen readers: what changed without the user's doing.
export function announce(text) {
  announced.value = text;
}

export function Announcements() {
  return html`<div class="hidden" role="status" aria-live="polite">${announced.value}</div>`;
}

// A form's field: label, control, hint. `id` joins the three.
export function Field({ id, label, hint, children }) {
  return html`
    <div class="field">
      <label for=${id}>${label}</label>
      ${children}
      ${hint && html`<small id=${`${id}-hint`}>${hint}</small>`}
    </div>`;
}

export function Problem({ text }) {
  return text ? html`<p class="problem" role="alert">${text}</p>` : null;
}

export function CopyButton({ text, label }) {
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      announce(`${label}: copied`);
    } catch {
      announce(`${label}: this browser does not allow copying; select the text instead`);
    }
  };
  return html`<button type="button" class="quiet" onClick=${copy}>${label}</button>`;
}

export function seconds(value) {
  if (value == null) return "–";
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  return `${Math.round(value / 60)} min`;
}

export function bytes(value) {
  if (value < 1024) return `${value} B`;
  const powers = ["KB", "MB", "GB", "TB"];
  const power = Math.min(powers.length, Math.floor(Math.log2(value) / 10));
  return `${(value / 1024 ** power).toFixed(1)} ${powers[power - 1]}`;
}

export function clockTime(unix) {
  return new Date(unix * 1000).toLocaleTimeString();
}
