// Pictures made in this browser, with what they were made with.
import { html, useSignal } from "../lib.js";
import { Problem, announce } from "../ui.js";
import { addPictures, useAgain } from "./form.js";
import { abilities } from "./models.js";
import { gallery, galleryProblem, removePicture } from "./store.js";

const PAGE = 24;
const NAMES = {
  model: "Model",
  negative_prompt: "Negative prompt",
  num_inference_steps: "Steps",
  guidance_scale: "Guidance",
  strength: "Strength",
};

export function Gallery() {
  const most = useSignal(PAGE);
  const all = gallery.value;
  return html`
    <section aria-labelledby="gallery-title">
      <h2 id="gallery-title">Gallery</h2>
      <${Problem} text=${galleryProblem.value} />
      ${!all.length && html`<p class="muted">Pictures that you make are kept here, in this browser alone.</p>`}
      <ul class="gallery">${all.slice(0, most.value).map((each) => html`<${Entry} key=${each.id} picture=${each} />`)}</ul>
      ${all.length > most.value && html`
        <button type="button" onClick=${() => (most.value += PAGE)}>Show ${Math.min(PAGE, all.length - most.value)} more</button>`}
    </section>`;
}

function Entry({ picture }) {
  const { url, fields, seed, size, revised, created, edited } = picture;
  const again = () => {
    useAgain(fields, seed);
    document.getElementById("prompt").focus();
    announce(edited ? "The form has these values; the pictures that were edited are yours to add" : "The form has these values");
  };
  const edit = async () => {
    await addPictures([new File([picture.blob], fileName(picture), { type: picture.blob.type })]);
    document.getElementById("prompt").focus();
    announce("Added to the pictures to edit");
  };
  return html`
    <li>
      <img src=${url} alt=${fields.prompt} loading="lazy" />
      <details>
        <summary>${fields.prompt}</summary>
        <dl>
          ${revised && html`<dt>Drawn from</dt><dd>${revised}</dd>`}
          ${Object.entries(NAMES).filter(([name]) => fields[name] !== undefined).map(([name, label]) => html`
            <dt>${label}</dt><dd>${fields[name]}</dd>`)}
          <dt>Size</dt><dd>${size}</dd>
          <dt>Seed</dt><dd>${seed}</dd>
          <dt>Made</dt><dd>${new Date(created).toLocaleString()}</dd>
        </dl>
      </details>
      <div class="row">
        <button type="button" class="quiet" onClick=${again}>Use these again</button>
        ${abilities.value?.edit && html`<button type="button" class="quiet" onClick=${edit}>Edit</button>`}
        <a class="button quiet" href=${url} download=${fileName(picture)}>Download</a>
        <button type="button" class="quiet" aria-label=${`Delete: ${fields.prompt}`} onClick=${() => removePicture(picture)}>Delete</button>
      </div>
    </li>`;
}

function fileName({ seed, blob }) {
  return `picture-${seed || "0"}.${blob.type.split("/")[1]}`;
}
