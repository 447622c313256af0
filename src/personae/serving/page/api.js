// What the page asks of the server, and what may go wrong on the way.

const KEY = "personae-key"; // of sessionStorage: it is gone when the tab closes
const TRIES = 3; // of a request that was told to come back later

/** Tells the page of the server: "gone", "back" and "busy" (detail: seconds to wait). */
export const signals = new EventTarget();

/** What went wrong, as a sentence; `status` is 0 where no reply came. */
export class Failure extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    Object.assign(this, { status, code });
  }
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const setKey = (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY));

let ask = async () => false;
let asking = null;
/** `how(wrong)` asks the person for a key, calls `setKey` and says whether there is one now. */
export const whenKeyIsNeeded = (how) => (ask = how);

// requests --------------------------------------------------------------------------------------------------------
async function send(path, { method = "GET", body, signal } = {}) {
  for (let attempt = 1; ; attempt++) {
    const key = sessionStorage.getItem(KEY);
    const headers = {};
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body) headers["Content-Type"] = "application/json";
    let reply;
    try {
      reply = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
    } catch (error) {
      throw lost(error);
    }
    signals.dispatchEvent(new Event("back"));
    if (reply.ok) return reply;
    if (reply.status === 401) {
      if (sessionStorage.getItem(KEY) !== key) continue; // another request has asked for it meanwhile
      asking ??= ask(key !== null).finally(() => (asking = null));
      if (await asking) continue;
    }
    if (reply.status === 429 && attempt < TRIES) {
      await pause(Number(reply.headers.get("Retry-After")) || 1, signal);
      continue;
    }
    throw await failure(reply);
  }
}

function lost(error) {
  if (error.name === "AbortError" || error instanceof Failure) return error;
  signals.dispatchEvent(new Event("gone"));
  return new Failure("The server does not answer. Is it still running?");
}

async function failure(reply) {
  const { error } = await reply.json().catch(() => ({}));
  const sentence = error?.message ?? `The server answered with status ${reply.status}.`;
  return new Failure(sentence[0].toUpperCase() + sentence.slice(1), reply.status, error?.code);
}

/** Waits the seconds the server asked for, and lets the page count them. */
function pause(seconds, signal) {
  signals.dispatchEvent(new CustomEvent("busy", { detail: seconds }));
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}

export const get = async (path) => (await send(path)).json();
export const post = async (path, body, signal) => (await send(path, { method: "POST", body, signal })).json();
export const remove = async (path) => (await send(path, { method: "DELETE" })).json();
export const persona = (id) => get(`v1/personas/${encodeURIComponent(id)}`);

/** Whether the server is there; never throws and needs no key. */
export const alive = () => fetch("healthz").then((reply) => reply.ok, () => false);

// streams ---------------------------------------------------------------------------------------------------------
async function* lines(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const whole = (rest + value).split("\n");
      rest = whole.pop();
      yield* whole;
    }
    if (rest) yield rest;
  } catch (error) {
    throw lost(error);
  } finally {
    reader.cancel().catch(() => {});
  }
}

const broken = () => new Failure("The reply broke off before its end. Ask again.");
const inStream = ({ error }) => new Failure(error.message[0].toUpperCase() + error.message.slice(1), 200, error.code);

/**
 * What personas would answer: `result[persona][question]` maps an option to its probability.
 * `personas` are names or specs, `questions` ids or {text, options}.
 */
export async function answers(personas, questions, { by = null, signal } = {}) {
  const reply = await send("v1/answers", { method: "POST", body: { personas, questions, by }, signal });
  const found = personas.map(() => []);
  for await (const text of lines(reply)) {
    if (!text) continue;
    const line = JSON.parse(text);
    if (line.error) throw inStream(line);
    if (line.done) return found;
    found[line.persona_index][line.question_index] = new Map(Object.entries(line.probabilities));
  }
  throw broken();
}

/** A persona's reply, piece by piece. */
export async function* chat(who, messages, signal) {
  const body = { ...who, messages, stream: true };
  const reply = await send("v1/chat/completions", { method: "POST", body, signal });
  for await (const line of lines(reply)) {
    if (!line.startsWith("data: ")) continue;
    if (line === "data: [DONE]") return;
    const event = JSON.parse(line.slice(6));
    if (event.error) throw inStream(event);
    const piece = event.choices[0]?.delta.content;
    if (piece) yield piece;
  }
  throw broken();
}
