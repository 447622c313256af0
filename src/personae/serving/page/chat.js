// The chat: the same message to everybody who answers, a column each, word by word.

import { chat } from "./api.js";
import { button, byId, dot, h, problem, speak } from "./dom.js";
import { forChat, nameOf, world } from "./world.js";

const talks = new Map(); // id -> [{role, content, element}]
let running = null; // AbortController of the replies under way

export function openChat() {
  const panel = byId("panel-chat");
  if (!world.about.language_model) {
    panel.replaceChildren(
      h("p", {}, "This bundle has no language model, so nobody can talk. Add one with:"),
      h("pre", {}, "personae steer BUNDLE"),
    );
    return;
  }
  const text = h("textarea", { id: "message", rows: 2, required: true, maxlength: 4000, placeholder: "What worries you?" });
  const submit = (event) => {
    event.preventDefault();
    const said = text.value.trim();
    if (!said || running) return;
    if (!world.company.length) return speak(byId("chat-hint").textContent);
    text.value = "";
    say(said);
    return undefined;
  };
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
  });
  panel.replaceChildren(
    h("p", { class: "soft", id: "chat-hint" }, "Nobody answers yet: pick somebody on the map and add them."),
    h("div", { id: "columns", class: "columns" }),
    h(
      "form",
      { submit, class: "say" },
      h("label", {}, h("span", { class: "hidden" }, "Message"), text),
      h(
        "div",
        { class: "actions" },
        h("button", { type: "submit", id: "send" }, "Send to all"),
        button("Stop", () => running?.abort(), { id: "stop", disabled: true, class: "quiet" }),
        button("Start anew", restart, { class: "quiet", id: "restart" }),
      ),
    ),
  );
  panel.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  world.on("company", columns);
  world.on("made", columns);
  columns();
}

function columns() {
  for (const id of talks.keys()) if (!world.isIn(id)) talks.delete(id);
  const made = world.company.map(({ id, colour }) => {
    if (!talks.has(id)) talks.set(id, []);
    const log = h("div", { role: "log", "aria-live": "off", "aria-label": `Chat with ${nameOf(id)}`, class: "log", tabindex: 0 });
    log.append(...talks.get(id).map((turn) => turn.element));
    return h("section", { class: "column", "data-id": id }, h("h3", {}, dot(colour), nameOf(id)), log);
  });
  byId("columns").replaceChildren(...made);
  byId("chat-hint").hidden = world.company.length > 0;
}

function restart() {
  running?.abort();
  talks.clear();
  columns();
}

/** Sends a message to everybody who answers. */
export async function say(said) {
  if (!world.about.language_model) return;
  if (running || !world.company.length) {
    byId("message").value = said; // for later
    return;
  }
  const stop = (running = new AbortController());
  busy(true);
  await Promise.all(world.company.map((member) => reply(member, said, stop.signal)));
  if (running === stop) running = null;
  busy(false);
}

function busy(now) {
  byId("send").disabled = now;
  byId("stop").disabled = !now;
}

async function reply(member, said, signal) {
  const talk = talks.get(member.id);
  talk.push({ role: "user", content: said, element: h("p", { class: "turn user" }, said) });
  const turn = { role: "assistant", content: "", element: h("p", { class: "turn assistant busy" }) };
  talk.push(turn);
  const log = byId("columns").querySelector(`[data-id="${CSS.escape(member.id)}"] .log`);
  log?.append(...talk.slice(-2).map((t) => t.element));
  const messages = talk.slice(0, -1).filter((t) => t.content).map(({ role, content }) => ({ role, content }));
  try {
    for await (const piece of chat(forChat(member), messages, signal)) {
      turn.content += piece;
      turn.element.textContent = turn.content.trimStart();
      if (log) log.scrollTop = log.scrollHeight;
    }
    if (!turn.content) turn.element.append(h("span", { class: "soft" }, "(says nothing)"));
    speak(`${nameOf(member.id)} says: ${turn.content}`);
  } catch (error) {
    if (signal.aborted) turn.element.append(h("span", { class: "soft" }, " (stopped)"));
    else turn.element.after(problem(error));
    if (!turn.content) talk.splice(-2); // what got no reply was not said
    if (!turn.content && !signal.aborted) turn.element.remove();
  } finally {
    turn.element.classList.remove("busy");
  }
}
