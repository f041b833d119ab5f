// Header, views, and what decides which view is shown: the part of the address after #.
import { effect, html, render, signal } from "./lib.js";
import { KeyButton, KeyDialog } from "./keys.js";
import { ThemeButton } from "./theme.js";
import { Announcements } from "./ui.js";
import { CreateView } from "./create/view.js";
import { PipelineView } from "./pipeline/view.js";
import { UsageView } from "./usage/view.js";

const VIEWS = {
  create: { title: "Create", View: CreateView },
  pipeline: { title: "Pipeline", View: PipelineView },
  usage: { title: "Usage", View: UsageView },
};

const shown = signal(named());

function named() {
  const name = location.hash.slice(1).split("/")[0];
  return name in VIEWS ? name : "create";
}

addEventListener("hashchange", () => {
  const before = shown.value;
  shown.value = named();
  if (shown.value !== before) document.getElementById("main").focus();
});

effect(() => {
  document.title = `${VIEWS[shown.value].title} · DisagFusion`;
});

function skip(event) {
  event.preventDefault(); // its address would name a view
  document.getElementById("main").focus();
}

function App() {
  const { View } = VIEWS[shown.value];
  return html`
    <a class="skip" href="#main" onClick=${skip}>Skip to content</a>
    <header class="top">
      <span class="brand">DisagFusion</span>
      <nav aria-label="Views">
        ${Object.entries(VIEWS).map(
          ([name, { title }]) =>
            html`<a href=${`#${name}`} aria-current=${name === shown.value ? "page" : null}>${title}</a>`,
        )}
      </nav>
      <div class="tools"><${KeyButton} /><${ThemeButton} /></div>
    </header>
    <main id="main" tabindex="-1"><${View} /></main>
    <${KeyDialog} />
    <${Announcements} />
  `;
}

render(html`<${App} />`, document.getElementById("app"));
