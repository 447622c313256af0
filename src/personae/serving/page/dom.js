// Elements, and the few patterns that several panels share.

/** An element: `h("p", {class: "soft"}, "text", child)`; functions become listeners, true and false attributes. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

export const dot = (colour) => h("span", { class: "dot", style: `background:${colour}`, "aria-hidden": "true" });

export const button = (text, click, attributes = {}) => h("button", { type: "button", click, ...attributes }, text);

/** A sentence about what went wrong, and a way on. */
export function problem(error, again = null) {
  return h("div", { class: "problem", role: "alert" }, h("p", {}, error.message), again && button("Try again", again));
}

export const waiting = (text) => h("p", { class: "waiting", role: "status" }, text);

/** A table; cells of numbers stand to the right. */
export function table(headers, rows, caption = null) {
  const cell = (tag) => (value, i) => h(tag, { class: i ? "number" : null, scope: tag === "th" ? "col" : null }, value);
  return h(
    "div",
    { class: "wide" },
    h(
      "table",
      {},
      caption && h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, headers.map(cell("th")))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell("td"))))),
    ),
  );
}

/** Says something to a screen reader. */
export function speak(text) {
  byId("spoken").textContent = text;
}

/** Runs the newest call only: `latest(signal => work)` stops the one before it. */
export function latest() {
  let running = null;
  return async (work) => {
    running?.abort();
    const mine = (running = new AbortController());
    try {
      return await work(mine.signal);
    } catch (error) {
      if (mine.signal.aborted) return undefined; // somebody asked for something newer
      throw error;
    } finally {
      if (running === mine) running = null;
    }
  };
}
