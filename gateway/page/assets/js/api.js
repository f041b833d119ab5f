// Calls to the gateway. What it refuses comes as ApiError, with its own words.
import { askForKey, authorization } from "./keys.js";

export class ApiError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

// `kind` says which key goes along: "api" or "admin". Raises ApiError, and asks for a key where one is missing or wrong.
export async function call(path, { kind = "api", ...options } = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...options.headers, ...authorization(kind) } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The gateway cannot be reached.", 0, "unreachable");
  }
  if (response.ok) return response;
  const refusal = await refused(response);
  if (response.status === 401) askForKey(kind, refusal.message);
  throw refusal;
}

export async function callJson(path, options) {
  return (await call(path, options)).json();
}

async function refused(response) {
  try {
    const { error } = await response.json();
    return new ApiError(error.message, response.status, error.code);
  } catch {
    return new ApiError(`The gateway answered with status ${response.status}.`, response.status, "");
  }
}
