// Painting on the first picture what is to be edited: with mouse, finger or pen, or with arrow keys and space.
import { html, useEffect, useRef, useSignal } from "../lib.js";
import { announce } from "../ui.js";
import { mask } from "./form.js";

const MARKED = "rgb(220 40 120)";
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export function MaskPainter({ picture }) {
  const open = useSignal(mask.value !== null);
  if (!open.value) {
    return html`<button type="button" id="paint-mask" onClick=${() => (open.value = true)}>Paint a mask</button>`;
  }
  return html`<${Painter} picture=${picture} onClose=${() => { mask.value = null; open.value = false; }} />`;
}

function Painter({ picture, onClose }) {
  const canvas = useRef(null); // what is marked, at the picture's own size
  const brush = useSignal(Math.max(4, Math.round(Math.min(picture.width, picture.height) / 8)));
  const erases = useSignal(false);
  const cursor = useSignal(null); // of the keyboard, in pixels of the picture
  const last = useRef(null);

  const stroke = (from, to) => {
    const context = canvas.current.getContext("2d");
    context.globalCompositeOperation = erases.value ? "destination-out" : "source-over";
    context.strokeStyle = context.fillStyle = MARKED;
    context.lineCap = "round";
    context.lineWidth = brush.value;
    context.beginPath();
    context.moveTo(from.x, from.y);
    context.lineTo(to.x + 0.01, to.y); // a line without length would leave no dot
    context.stroke();
  };
  const keep = async () => {
    mask.value = await maskOf(canvas.current);
    announce(mask.value ? "Mask changed" : "The mask is empty");
  };
  const clear = () => {
    canvas.current.getContext("2d").clearRect(0, 0, picture.width, picture.height);
    keep();
  };
  const pointer = {
    onPointerDown: (event) => {
      event.currentTarget.setPointerCapture(event.pointerId);
      last.current = place(event);
      stroke(last.current, last.current);
    },
    onPointerMove: (event) => {
      if (!last.current) return;
      const next = place(event);
      stroke(last.current, next);
      last.current = next;
    },
    onPointerUp: () => {
      last.current = null;
      keep();
    },
  };
  const key = (event) => {
    const at = cursor.value ?? { x: picture.width / 2, y: picture.height / 2 };
    if (event.key in MOVES) {
      const [x, y] = MOVES[event.key].map((way) => (way * brush.value) / 2);
      cursor.value = { x: within(at.x + x, picture.width), y: within(at.y + y, picture.height) };
    } else if (event.key === " " || event.key === "Enter") {
      cursor.value = at;
      stroke(at, at);
      keep();
    } else return;
    event.preventDefault();
  };
  useEffect(() => announce("Paint on what is to be edited"), []);
  return html`
    <p id="mask-help" class="muted">Paint on what is to be edited. By keyboard: arrow keys move the brush, space paints.</p>
    <div class="painter">
      <img src=${picture.url} alt="" />
      <canvas ref=${canvas} id="mask" width=${picture.width} height=${picture.height} tabindex="0" role="application"
        aria-label="Mask" aria-describedby="mask-help" onKeyDown=${key} ...${pointer}></canvas>
      ${cursor.value && html`<${Cursor} at=${cursor.value} brush=${brush.value} picture=${picture} />`}
    </div>
    <div class="row">
      <label class="compact">Brush
        <input id="brush" type="range" min="2" max=${Math.max(8, Math.round(Math.min(picture.width, picture.height) / 2))} value=${brush.value}
          onInput=${(event) => (brush.value = Number(event.target.value))} />
      </label>
      <label class="check"><input type="checkbox" checked=${erases.value} onChange=${() => (erases.value = !erases.value)} /> Erase</label>
      <button type="button" class="quiet" onClick=${clear}>Clear</button>
      <button type="button" class="quiet" onClick=${onClose}>No mask</button>
    </div>`;
}

// An SVG over the picture: attributes need no inline styles, which the page's policy forbids.
function Cursor({ at, brush, picture }) {
  return html`
    <svg class="brush" viewBox=${`0 0 ${picture.width} ${picture.height}`} aria-hidden="true">
      <circle cx=${at.x} cy=${at.y} r=${brush / 2} />
    </svg>`;
}

const within = (value, most) => Math.min(most, Math.max(0, value));

function place(event) {
  const box = event.currentTarget.getBoundingClientRect();
  const { width, height } = event.currentTarget;
  return { x: ((event.clientX - box.left) / box.width) * width, y: ((event.clientY - box.top) / box.height) * height };
}

// As the API takes it: opaque, and transparent where it is to be edited. null where nothing is marked.
function maskOf(marked) {
  const pixels = marked.getContext("2d").getImageData(0, 0, marked.width, marked.height).data;
  if (!pixels.some((value, at) => at % 4 === 3 && value > 0)) return null;
  const made = document.createElement("canvas");
  made.width = marked.width;
  made.height = marked.height;
  const context = made.getContext("2d");
  context.fillRect(0, 0, made.width, made.height);
  context.globalCompositeOperation = "destination-out";
  context.drawImage(marked, 0, 0);
  return new Promise((resolve) => made.toBlob(resolve, "image/png"));
}
