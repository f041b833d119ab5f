// Two keys: one for the API, one for operators. They leave the browser in the Authorization header and nowhere else.
import { html, signal, useEffect, useRef } from "./lib.js";

const KINDS = {
  api: { label: "API key", hint: "Sent with every request for pictures and usage." },
  admin: { label: "Admin key", hint: "Opens the pipeline, and orders to stage servers." },
};

export const keys = { api: signal(read("api")), admin: signal(read("admin")) };

// Which key is being asked for, and why: {kind, why}; null while none is.
const asked = signal(null);

function read(kind) {
  return sessionStorage.getItem(`${kind}-key`) ?? localStorage.getItem(`${kind}-key`) ?? "";
}

function keep(kind, value, lasting) {
  for (const store of [sessionStorage, localStorage]) store.removeItem(`${kind}-key`);
  if (value) (lasting ? localStorage : sessionStorage).setItem(`${kind}-key`, value);
  keys[kind].value = value;
}

export function askForKey(kind, why) {
  if (asked.peek() === null) asked.value = { kind, why };
}

export function authorization(kind) {
  const key = keys[kind].peek();
  return key ? { authorization: `Bearer ${key}` } : {};
}

export function KeyButton() {
  const set = Object.keys(keys).filter((kind) => keys[kind].value);
  const title = set.length ? `Keys (${set.length} set)` : "Keys";
  return html`<button type="button" class="quiet" onClick=${() => askForKey("api", "")}>${title}</button>`;
}

export function KeyDialog() {
  const dialog = useRef(null);
  const question = asked.value;
  useEffect(() => {
    if (question && !dialog.current.open) {
      dialog.current.showModal();
      dialog.current.querySelector(`#key-${question.kind}`).focus();
    }
    if (!question && dialog.current.open) dialog.current.close();
  }, [question]);

  const submit = (event) => {
    event.preventDefault();
    const form = event.target;
    for (const kind of Object.keys(KINDS)) {
      const value = form.elements[kind].value.trim();
      if (value !== keys[kind].peek() || form.elements.lasting.checked) keep(kind, value, form.elements.lasting.checked);
    }
    asked.value = null;
  };
  return html`
    <dialog ref=${dialog} aria-labelledby="keys-title" onClose=${() => (asked.value = null)}>
      <form onSubmit=${submit}>
        <h2 id="keys-title">Keys</h2>
        ${question?.why && html`<p class="problem">${question.why}</p>`}
        ${question && Object.entries(KINDS).map(([kind, about]) => html`<${KeyField} kind=${kind} about=${about} />`)}
        <label class="check"><input type="checkbox" name="lasting" /> Keep on this device (otherwise until the tab closes)</label>
        <div class="row">
          <button type="submit" class="primary">Use</button>
          <button type="button" onClick=${() => (asked.value = null)}>Cancel</button>
        </div>
      </form>
    </dialog>`;
}

function KeyField({ kind, about }) {
  return html`
    <div class="field">
      <label for=${`key-${kind}`}>${about.label}</label>
      <input id=${`key-${kind}`} name=${kind} type="password" autocomplete="off" spellcheck="false"
        aria-describedby=${`key-${kind}-hint`} defaultValue=${keys[kind].peek()} />
      <small id=${`key-${kind}-hint`}>${about.hint}</small>
    </div>`;
}
