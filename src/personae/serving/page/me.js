// "Make me": eight questions, each the one that tells most after the answers so far; then talk to yourself.

import { post } from "./api.js";
import { button, byId, h, latest, problem, speak, waiting } from "./dom.js";
import { nameOf, percent, world } from "./world.js";

const ASKED = 8;
const newest = latest();
let map = null;
let done = null; // called with the id of the persona that was made
let steps = []; // [{question, option or null where it was skipped}]
let trail = []; // places after each answer

export function openMe(peopleMap, whenMade) {
  map = peopleMap;
  done = whenMade;
  welcome();
}

function welcome() {
  steps = [];
  trail = [];
  byId("panel-me").replaceChildren(
    h("h2", {}, "Where would you be?"),
    h(
      "p",
      {},
      `Answer ${ASKED} questions of this survey. Each next one is the question whose answer will say most about you; on the map
      you see where you are and how certain that is. Then talk to yourself.`,
    ),
    h(
      "p",
      { class: "soft small" },
      `Until you keep yourself at the end nothing is stored. Then it is a vector, not your answers, and you can delete it.`,
    ),
    h("div", { class: "actions" }, button("Start", ask, { id: "me-start" })),
  );
}

/** Draws where the answers so far put somebody, e.g. when the panel is opened. */
export function drawMe() {
  const last = trail.at(-1);
  map.sketch(last ? { you: last, trail, glide: true } : {});
}

const given = () => Object.fromEntries(steps.filter((s) => s.option !== null).map((s) => [s.question.id, s.option]));

async function ask() {
  const panel = byId("panel-me");
  panel.setAttribute("aria-busy", "true");
  if (!panel.querySelector("fieldset")) panel.replaceChildren(waiting("Choosing a question …"));
  try {
    const body = { answers: given() };
    const skipped = new Set(steps.filter((s) => s.option === null).map((s) => s.question.id));
    if (skipped.size) body.among = [...world.questions.keys()].filter((id) => !skipped.has(id)).slice(0, 2000);
    const found = await newest((signal) => post("v1/next-question", body, signal));
    if (!found) return;
    trail = [...trail.slice(0, Object.keys(body.answers).length), found.persona.place];
    drawMe();
    const answered = Object.keys(body.answers).length;
    if (answered >= ASKED || !found.question) finish(found.persona);
    else question(found, answered);
  } catch (error) {
    panel.replaceChildren(problem(error, ask));
  } finally {
    panel.setAttribute("aria-busy", "false");
  }
}

function question({ question, uncertainty_after: after, persona }, answered) {
  const answer = (option) => {
    steps.push({ question, option });
    ask();
  };
  const back = () => {
    steps.pop();
    ask();
  };
  const first = button(question.options[0], () => answer(question.options[0]), { class: "option" });
  const others = question.options.slice(1).map((o) => button(o, () => answer(o), { class: "option" }));
  byId("panel-me").replaceChildren(
    progress(answered, persona),
    h("fieldset", {}, h("legend", {}, question.text), first, others),
    h(
      "div",
      { class: "actions" },
      button("Back", back, { class: "quiet", disabled: !steps.length }),
      button("Skip", () => answer(null), { class: "quiet" }),
      button("That is enough", () => finish(persona), { class: "quiet", disabled: !answered }),
    ),
    h("p", { class: "soft small" }, `Your answer will leave ${percent(after)} uncertain.`),
  );
  first.focus({ preventScroll: true });
  speak(`Question ${answered + 1} of ${ASKED}: ${question.text}`);
}

function progress(answered, persona) {
  const near = persona.cohort && answered ? ` · nearest to ${persona.cohort}` : "";
  return h(
    "div",
    { class: "progress" },
    h("p", { class: "soft" }, `Question ${Math.min(answered + 1, ASKED)} of ${ASKED} · ${percent(persona.uncertainty)} uncertain${near}`),
    h("progress", { max: ASKED, value: answered, "aria-label": `${answered} of ${ASKED} answered` }),
  );
}

function finish(persona) {
  const label = h("input", { id: "me-label", maxlength: 60, value: "me", required: true });
  const keep = async (event) => {
    event.preventDefault();
    save.disabled = true;
    try {
      const card = await post("v1/personas", { answers: given(), label: label.value.trim() || "me" });
      world.remember(card);
      kept(card);
    } catch (error) {
      save.disabled = false;
      byId("panel-me").append(problem(error));
    }
  };
  const save = h("button", { type: "submit" }, "Keep me and talk");
  byId("panel-me").replaceChildren(
    h("h2", {}, persona.cohort ? `You are nearest to ${persona.cohort}` : "There you are"),
    h("p", { class: "label" }, world.cohorts.get(persona.cohort)?.label ?? ""),
    h("p", {}, `${percent(persona.uncertainty)} of what could be known is still uncertain; the ellipse holds you with 95\u00a0%.`),
    h(
      "form",
      { submit: keep },
      h("label", {}, "What to call you", label),
      h("div", { class: "actions" }, save, button("Start again", welcome, { class: "quiet" })),
    ),
  );
  save.focus({ preventScroll: true });
  speak("Done. You can keep yourself and talk to yourself now.");
}

function kept(card) {
  byId("panel-me").replaceChildren(
    h("h2", {}, `${nameOf(card.id)} is here`),
    h("p", {}, "Open the card to see what the model makes of you, or to delete it."),
    h(
      "div",
      { class: "actions" },
      button("Open my card", () => world.pick(card.id)),
      button("Make another", welcome, { class: "quiet" }),
    ),
  );
  done(card.id);
}
