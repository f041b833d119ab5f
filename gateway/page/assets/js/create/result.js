// What is under way: pictures as they become clear, steps, and the predicted time as it runs down.
import { html, useEffect, useSignal } from "../lib.js";
import { Problem, seconds } from "../ui.js";
import { isRunning, run } from "./run.js";

const WORDS = {
  sending: "Sent; waiting for an answer",
  waiting: "Admitted",
  drawing: "Drawing",
  done: "Done",
  failed: "Failed",
  cancelled: "Cancelled",
};

export function Result() {
  const { state, pictures, problem } = run.value;
  if (state === "idle") return null;
  return html`
    <section aria-labelledby="result-title">
      <h2 id="result-title">Now</h2>
      <p class="state" data-state=${state}>${WORDS[state]}${state === "done" ? ` in ${seconds(run.value.took)}` : ""}<${Countdown} /></p>
      <${Problem} text=${problem} />
      <ul class="pictures">
        ${pictures.map((picture, index) => html`<${Drawn} picture=${picture} index=${index} busy=${isRunning()} />`)}
      </ul>
    </section>`;
}

// Not part of any live region: a screen reader would count along.
function Countdown() {
  const now = useSignal(Date.now());
  const running = isRunning();
  useEffect(() => {
    if (!running) return undefined;
    const timer = setInterval(() => (now.value = Date.now()), 200);
    return () => clearInterval(timer);
  }, [running]);
  const { ends, ahead, state } = run.value;
  if (!running || ends == null) return null;
  const left = (ends - now.value) / 1000;
  const place = state === "waiting" && ahead ? `, ${ahead} ahead` : "";
  return html`<span class="countdown">${place}, ${left > 0 ? `about ${seconds(left)} left` : "any moment now"}</span>`;
}

function Drawn({ picture, index, busy }) {
  const { url, partial, step, steps, seed, revised } = picture;
  const name = `Picture ${index + 1}`;
  return html`
    <li data-partial=${url ? String(partial) : null}>
      ${url
        ? html`<img src=${url} alt=${partial ? `${name}, still unclear` : name} class=${partial ? "partial" : ""} />`
        : html`<div class="blank" aria-hidden="true"></div>`}
      ${steps && busy && (partial || !url) && html`
        <label class="steps">${name}: step ${step} of ${steps}<progress max=${steps} value=${step}></progress></label>`}
      ${seed && html`<small>Seed ${seed}</small>`}
      ${revised && html`<small>Drawn from: ${revised}</small>`}
    </li>`;
}
