// Pictures to edit, and the mask on the first of them.
import { html, useSignal } from "../lib.js";
import { Field, Problem } from "../ui.js";
import { addPictures, pictures, removePicture } from "./form.js";
import { MaskPainter } from "./mask.js";
import { abilities } from "./models.js";

export function PictureFields() {
  const problem = useSignal("");
  const add = async (event) => {
    problem.value = "";
    try {
      await addPictures([...event.target.files]);
    } catch (error) {
      problem.value = error.message;
    }
    event.target.value = "";
  };
  const most = Math.max(abilities.value.edit?.max_images ?? 0, abilities.value.edit_with_mask?.max_images ?? 0);
  return html`
    <fieldset>
      <legend>Pictures to edit</legend>
      <${Field} id="pictures" label=${most > 1 ? `Add pictures (${most} at most)` : "Add a picture"}>
        <input id="pictures" type="file" accept="image/png,image/jpeg,image/webp" multiple=${most > 1} onChange=${add} />
      <//>
      <${Problem} text=${problem.value} />
      <ul class="uploads">
        ${pictures.value.map((picture, index) => html`
          <li key=${picture.url}>
            <img src=${picture.url} alt=${picture.name} />
            <span>${picture.name} (${picture.width} × ${picture.height})</span>
            <button type="button" class="quiet" aria-label=${`Remove ${picture.name}`} onClick=${() => removePicture(index)}>Remove</button>
          </li>`)}
      </ul>
      ${pictures.value.length > 0 && abilities.value.edit_with_mask && html`
        <${MaskPainter} key=${pictures.value[0].url} picture=${pictures.value[0]} />`}
    </fieldset>`;
}
