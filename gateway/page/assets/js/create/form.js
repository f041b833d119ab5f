// The form's values, and the request that they make.
import { batch, computed, signal } from "../lib.js";
import { abilities, chosenModel, taskOf } from "./models.js";
import { complaint, parse } from "./sizes.js";

export const CUSTOM = "custom";
export const MODELS_OWN = ""; // or, of an edit, the picture's
const MAX_PARTIALS = 3;
const SEED = /^\d{1,18}$/; // below 2**63, the largest that the API takes

export const form = {
  prompt: signal(""),
  negative_prompt: signal(""),
  size: signal(MODELS_OWN),
  width: signal(""),
  height: signal(""),
  steps: signal(""),
  guidance: signal(""),
  strength: signal(""),
  seed: signal(""),
  upscale: signal(""),
  enhance: signal(""),
  n: signal("1"),
  partials: signal(String(MAX_PARTIALS)),
};

export const pictures = signal([]); // {blob, name, url, width, height}
export const mask = signal(null); // a PNG: transparent where the picture is to be edited

export const task = computed(() => taskOf(abilities.value, pictures.value.length, mask.value !== null));
export const reads = (parameter) => task.value?.parameters.includes(parameter) ?? false;

// What keeps the form from being sent, in words.
export const obstacle = computed(() => {
  if (!abilities.value) return "No model is available.";
  if (!task.value) return pictures.value.length ? cannotEdit() : "This model makes no pictures from text alone.";
  const most = task.value.max_images ?? 0;
  if (pictures.value.length > most) return `This model takes ${most} picture${most === 1 ? "" : "s"} at most.`;
  if (!form.prompt.value.trim()) return "Write a prompt first.";
  if (form.seed.value && !SEED.test(form.seed.value)) return "The seed must be a whole number of at most 18 digits.";
  return form.size.value === CUSTOM ? complaint(customSize(), abilities.value.size) : "";
});

function cannotEdit() {
  return mask.value ? "This model cannot edit within a mask." : "This model cannot edit pictures.";
}

function customSize() {
  return { width: Number(form.width.value), height: Number(form.height.value) };
}

function number(text) {
  return text.trim() === "" ? undefined : Number(text);
}

function size() {
  if (form.size.value === CUSTOM) return `${form.width.value}x${form.height.value}`;
  return form.size.value || undefined;
}

// {path, fields, pictures, mask}: without what is left to the model.
export const request = computed(() => {
  const fields = {
    model: chosenModel.value,
    prompt: form.prompt.value,
    negative_prompt: reads("negative_prompt") ? form.negative_prompt.value.trim() || undefined : undefined,
    size: size(),
    num_inference_steps: reads("num_inference_steps") ? number(form.steps.value) : undefined,
    guidance_scale: reads("guidance_scale") ? number(form.guidance.value) : undefined,
    strength: reads("strength") ? number(form.strength.value) : undefined,
    seed: seed(),
    upscale: (form.upscale.value && abilities.value?.upscale) || undefined,
    enhance: (form.enhance.value && abilities.value?.enhance) || undefined,
    n: Number(form.n.value) > 1 ? Number(form.n.value) : undefined,
  };
  for (const name of Object.keys(fields)) if (fields[name] === undefined) delete fields[name];
  const path = pictures.value.length ? "v1/images/edits" : "v1/images/generations";
  return { path, fields, pictures: pictures.value, mask: mask.value };
});

// As digits: larger than what a JavaScript number holds exactly.
function seed() {
  return SEED.test(form.seed.value) ? BigInt(form.seed.value) : undefined;
}

export function streaming() {
  return { stream: true, partial_images: Number(form.partials.value) };
}

// JSON.stringify, with whole numbers of any size.
export function asJson(fields) {
  const body = Object.entries(fields).map(
    ([name, value]) => `${JSON.stringify(name)}: ${typeof value === "bigint" ? value : JSON.stringify(value)}`,
  );
  return `{${body.join(", ")}}`;
}

// Fill the form with what a picture of the gallery was made with.
export function useAgain(fields, seedUsed) {
  batch(() => {
    chosenModel.value = fields.model ?? chosenModel.peek();
    form.prompt.value = fields.prompt;
    form.negative_prompt.value = fields.negative_prompt ?? "";
    useSize(fields.size ?? MODELS_OWN);
    form.steps.value = String(fields.num_inference_steps ?? "");
    form.guidance.value = String(fields.guidance_scale ?? "");
    form.strength.value = String(fields.strength ?? "");
    form.seed.value = seedUsed;
    form.upscale.value = String(fields.upscale ?? "");
    form.enhance.value = fields.enhance ? "yes" : "";
    form.n.value = "1";
  });
}

function useSize(text) {
  if (text === MODELS_OWN) {
    form.size.value = MODELS_OWN;
    return;
  }
  const { width, height } = parse(text);
  form.size.value = CUSTOM;
  form.width.value = String(width);
  form.height.value = String(height);
}

export async function addPictures(blobs) {
  for (const blob of blobs) {
    const url = URL.createObjectURL(blob);
    const { width, height } = await dimensions(url);
    batch(() => {
      pictures.value = [...pictures.peek(), { blob, url, width, height, name: blob.name ?? "picture.png" }];
      if (pictures.peek().length === 1) mask.value = null;
    });
  }
}

export function removePicture(index) {
  URL.revokeObjectURL(pictures.peek()[index].url);
  batch(() => {
    pictures.value = pictures.peek().filter((_, each) => each !== index);
    if (index === 0) mask.value = null; // it was painted on that one
  });
}

function dimensions(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve({ width: image.naturalWidth, height: image.naturalHeight });
    image.onerror = () => reject(new Error("This file is no picture that the browser can read."));
    image.src = url;
  });
}
