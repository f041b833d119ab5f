// Light, dark, or as the system has it.
import { effect, html, signal } from "./lib.js";

const NAMES = { system: "System", light: "Light", dark: "Dark" };
const stored = localStorage.getItem("theme");

export const theme = signal(stored in NAMES ? stored : "system");

effect(() => {
  document.documentElement.dataset.theme = theme.value;
  localStorage.setItem("theme", theme.value);
});

export function ThemeButton() {
  const choose = (event) => (theme.value = event.target.value);
  return html`
    <label class="compact"><span class="hidden">Colours</span>
      <select id="theme" onChange=${choose} value=${theme.value}>
        ${Object.entries(NAMES).map(([name, label]) => html`<option value=${name}>${label}</option>`)}
      </select>
    </label>`;
}

// What is drawn on canvases needs the colours as values.
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
