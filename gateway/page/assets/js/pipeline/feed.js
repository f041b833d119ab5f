// The gateway's stream, put together again: tables of rows, each a signal. docs/page.md says what frames hold.
import { batch, signal } from "../lib.js";
import { ApiError, call } from "../api.js";
import { eventsOf } from "../events.js";
import { keys } from "../keys.js";

const NAMES = ["servers", "stages", "requests", "slices", "news", "plans"];
const FIRST_DELAY = 500;
const LAST_DELAY = 10_000;

export const tables = Object.fromEntries(NAMES.map((name) => [name, signal({})]));
// no-key, connecting, live, lost, absent (the gateway has no admin key), refused
export const link = signal("connecting");

// Reads for as long as the view is shown, anew with every new key. Returns what ends it.
export function watch() {
  let reading = new AbortController();
  const forget = keys.admin.subscribe(() => {
    reading.abort();
    reading = new AbortController();
    keepReading(reading.signal);
  });
  return () => {
    forget();
    reading.abort();
  };
}

async function keepReading(signal) {
  if (!keys.admin.peek()) {
    link.value = "no-key";
    return;
  }
  let delay = FIRST_DELAY;
  while (!signal.aborted) {
    link.value = "connecting";
    try {
      const response = await call("admin/pipeline", { kind: "admin", signal });
      for await (const event of eventsOf(response)) {
        if (signal.aborted) return;
        if (event.data && apply(JSON.parse(event.data))) delay = FIRST_DELAY;
      }
    } catch (error) {
      if (signal.aborted || isFinal(error)) return;
    }
    if (signal.aborted) return;
    link.value = "lost";
    await pause(delay, signal);
    delay = Math.min(2 * delay, LAST_DELAY);
  }
}

// Whether there is no point in trying again.
function isFinal(error) {
  if (!(error instanceof ApiError)) return false;
  if (error.status === 401) link.value = "refused";
  if (error.status === 404) link.value = "absent";
  return error.status === 401 || error.status === 404;
}

function pause(delay, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, delay);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}

// Whether the state is whole now.
function apply(told) {
  batch(() => {
    if (told.reset) for (const table of Object.values(tables)) table.value = {};
    for (const name of NAMES) {
      const [rows, changes, gone] = [told.rows?.[name], told.changes?.[name], told.gone?.[name]];
      if (rows || changes || gone) tables[name].value = merged(tables[name].peek(), rows, changes, gone);
    }
    if (told.complete) link.value = "live";
  });
  return Boolean(told.complete);
}

function merged(table, rows = {}, changes = {}, gone = []) {
  const after = { ...table, ...rows };
  for (const [key, fields] of Object.entries(changes)) if (key in after) after[key] = { ...after[key], ...fields };
  for (const key of gone) delete after[key];
  return after;
}
