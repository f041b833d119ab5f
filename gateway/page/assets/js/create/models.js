// What is served, and what requests may ask of it.
import { batch, computed, signal } from "../lib.js";
import { callJson } from "../api.js";
import { keys } from "../keys.js";

const RETRY_MS = 3000; // while no stage server is there
let retry = null;

export const models = signal([]);
export const modelsProblem = signal("");
export const chosenModel = signal("");

export const model = computed(() => models.value.find((each) => each.id === chosenModel.value));
export const abilities = computed(() => model.value?.abilities);

// While the view is shown: again with every new key, as it decides which models may be used. Returns what ends it.
export function keepModels() {
  const forget = keys.api.subscribe(loadModels);
  return () => {
    forget();
    clearTimeout(retry);
  };
}

export async function loadModels() {
  clearTimeout(retry);
  try {
    const { data } = await callJson("v1/models");
    batch(() => {
      models.value = data;
      modelsProblem.value = data.length ? "" : "No stage server has registered yet.";
      if (!data.some((each) => each.id === chosenModel.peek())) chosenModel.value = usual(data)?.id ?? "";
    });
    if (!data.length) retry = setTimeout(loadModels, RETRY_MS);
  } catch (error) {
    modelsProblem.value = error.message;
  }
}

const usual = (found) => found.find((each) => each.default) ?? found[0];

// What the model does with a request that has so many pictures, and a mask or none; null: it cannot.
export function taskOf(can, pictures, mask) {
  if (!can) return null;
  if (!pictures) return can.generate;
  return mask ? can.edit_with_mask : can.edit;
}
