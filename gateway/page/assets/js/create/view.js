// The view that makes pictures: form, what is under way, gallery.
import { html, useEffect, useSignal } from "../lib.js";
import { Field, Problem } from "../ui.js";
import { CodeSamples } from "./code.js";
import { CUSTOM, MODELS_OWN, form, obstacle, pictures, reads, task } from "./form.js";
import { Gallery } from "./gallery.js";
import { abilities, chosenModel, keepModels, loadModels, models, modelsProblem } from "./models.js";
import { PictureFields } from "./pictures.js";
import { Result } from "./result.js";
import { cancel, isRunning, start } from "./run.js";
import { offered } from "./sizes.js";
import { loadGallery } from "./store.js";

const setter = (value) => (event) => (value.value = event.target.value);

export function CreateView() {
  useEffect(() => void loadGallery(), []);
  useEffect(keepModels, []);
  return html`
    <h1 class="hidden">Create pictures</h1>
    <div class="create">
      <${RequestForm} />
      <div>
        <${Result} />
        <${Gallery} />
      </div>
    </div>`;
}

function RequestForm() {
  const refused = useSignal("");
  const submit = (event) => {
    event.preventDefault();
    refused.value = obstacle.value;
    if (!refused.value) start();
  };
  const problem = modelsProblem.value || (refused.value && obstacle.value);
  return html`
    <form class="request" onSubmit=${submit} aria-label="Request">
      <${ModelField} />
      <${Field} id="prompt" label="Prompt">
        <textarea id="prompt" rows="4" maxlength="32000" required value=${form.prompt.value} onInput=${setter(form.prompt)} />
      <//>
      ${reads("negative_prompt") && html`
        <${Field} id="negative" label="Negative prompt" hint="What should not be in the picture; needs guidance above 1.">
          <textarea id="negative" rows="2" maxlength="32000" aria-describedby="negative-hint"
            value=${form.negative_prompt.value} onInput=${setter(form.negative_prompt)} />
        <//>`}
      ${(abilities.value?.edit || abilities.value?.edit_with_mask) && html`<${PictureFields} />`}
      <${SizeFields} />
      <div class="pair">
        <${Numbers} />
      </div>
      <${Problem} text=${problem} />
      <div class="row">
        ${/* Keys: as one element, Cancel would become a submit button while it is being clicked. */ ""}
        ${isRunning()
          ? html`<button key="cancel" type="button" class="primary" id="cancel" onClick=${cancel}>Cancel</button>`
          : html`<button key="generate" type="submit" class="primary" id="generate">${pictures.value.length ? "Edit" : "Create"}</button>`}
      </div>
      <${CodeSamples} />
    </form>`;
}

function ModelField() {
  return html`
    <${Field} id="model" label="Model">
      <div class="row">
        <select id="model" value=${chosenModel.value} onChange=${setter(chosenModel)}>
          ${models.value.map(({ id }) => html`<option value=${id} selected=${id === chosenModel.value}>${id}</option>`)}
        </select>
        <button type="button" class="quiet" onClick=${loadModels} aria-label="Load the list of models again">↻</button>
      </div>
    <//>`;
}

function SizeFields() {
  const rules = abilities.value?.size;
  if (!rules) return null;
  const own = pictures.value.length ? "as the first picture" : `${rules.default} (the model's own)`;
  const sizes = offered(rules).filter((size) => pictures.value.length || size !== rules.default);
  const option = (value, label) => html`<option value=${value} selected=${form.size.value === value}>${label}</option>`;
  return html`
    <${Field} id="size" label="Size">
      <select id="size" value=${form.size.value} onChange=${setter(form.size)}>
        ${option(MODELS_OWN, own)}
        ${sizes.map((size) => option(size, size.replace("x", " × ")))}
        ${option(CUSTOM, "another size…")}
      </select>
    <//>
    ${form.size.value === CUSTOM && html`
      <div class="pair">
        <${NumberField} name="width" label="Width" min=${rules.multiple} step=${rules.multiple} required />
        <${NumberField} name="height" label="Height" min=${rules.multiple} step=${rules.multiple} required />
      </div>`}`;
}

function Numbers() {
  const can = abilities.value;
  if (!can || !task.value) return null;
  const own = (value) => (value == null ? "the model's own" : String(value));
  return html`
    ${reads("num_inference_steps") && html`
      <${NumberField} name="steps" label="Steps" min="1" max="200" placeholder=${own(can.default_steps)} />`}
    ${reads("guidance_scale") && html`
      <${NumberField} name="guidance" label="Guidance" min="0" max="50" step="any" placeholder=${own(can.default_guidance)} />`}
    ${reads("strength") && html`
      <${NumberField} name="strength" label="Strength" min="0.01" max="1" step="any"
        placeholder=${own(task.value.default_strength)} />`}
    <${Field} id="seed" label="Seed">
      <input id="seed" inputmode="numeric" autocomplete="off" placeholder="random" value=${form.seed.value}
        onInput=${setter(form.seed)} />
    <//>
    ${can.enhance && html`
      <${Field} id="enhance" label="Enhance the prompt">
        <select id="enhance" value=${form.enhance.value} onChange=${setter(form.enhance)}>
          <option value="">no</option>
          <option value="yes">write it anew</option>
        </select>
      <//>`}
    ${can.upscale && html`
      <${Field} id="upscale" label="Upscale">
        <select id="upscale" value=${form.upscale.value} onChange=${setter(form.upscale)}>
          <option value="">no</option>
          <option value=${can.upscale}>${can.upscale} times the size</option>
        </select>
      <//>`}
    <${NumberField} name="n" label="Pictures" min="1" max=${can.max_n} required />
    <${NumberField} name="partials" label="Partial pictures" min="0" max="3" required />`;
}

function NumberField({ name, label, ...bounds }) {
  return html`
    <${Field} id=${name} label=${label}>
      <input id=${name} type="number" value=${form[name].value} onInput=${setter(form[name])} ...${bounds} />
    <//>`;
}
