// The gallery's pictures, in this browser's own database: nothing of it is on the server.
import { signal } from "../lib.js";

const STORE = "pictures";

export const gallery = signal([]); // newest first: {id, blob, url, created, fields, seed, size, revised, edited}; revised: what an enhancer made of the prompt
export const galleryProblem = signal("");

let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const asked = indexedDB.open("disagfusion", 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
  return opened;
}

async function ask(mode, make) {
  const store = (await database()).transaction(STORE, mode).objectStore(STORE);
  return new Promise((resolve, reject) => {
    const asked = make(store);
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

const shown = (picture) => ({ ...picture, url: URL.createObjectURL(picture.blob) });

export async function loadGallery() {
  try {
    const found = await ask("readonly", (store) => store.getAll());
    gallery.value = found.reverse().map(shown);
  } catch (error) {
    galleryProblem.value = `This browser keeps no pictures: ${error.message}`;
  }
}

// A picture that cannot be kept is shown all the same, until the page is left.
export async function keepPicture(picture) {
  let id = -Date.now();
  try {
    id = await ask("readwrite", (store) => store.add(picture));
  } catch (error) {
    galleryProblem.value = `This picture is not kept: ${error.message}`;
  }
  gallery.value = [shown({ ...picture, id }), ...gallery.peek()];
}

export async function removePicture(picture) {
  if (picture.id > 0) await ask("readwrite", (store) => store.delete(picture.id));
  URL.revokeObjectURL(picture.url);
  gallery.value = gallery.peek().filter((each) => each.id !== picture.id);
}
