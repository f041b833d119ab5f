// The library as every other module sees it: one place to look where it comes from.
import { h, render } from "preact";
import htm from "htm";

export const html = htm.bind(h);
export { render };
export { batch, computed, effect, signal, useSignal } from "@preact/signals";
export { useEffect, useLayoutEffect, useRef } from "preact/hooks";
