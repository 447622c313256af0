// The card of whoever was picked: what was observed of a cohort, what the model expects of anybody else.

import { answers, get, persona, remove } from "./api.js";
import { inviteButton } from "./company.js";
import { button, byId, dot, h, problem, speak, table, waiting } from "./dom.js";
import { asCells, legend, profile } from "./figures.js";
import { COLOURS, GREY, colourOf, count, nameOf, percent, titleOf, world } from "./world.js";

const MOST_PREDICTED = 5; // answers on the card of somebody who is no cohort
const KINDS = { "fold-in": "made from answers", everybody: "the average of all" };
let shown = null;

export function openCard() {
  world.on("company", () => shown && showActions());
  byId("panel-card").replaceChildren(h("p", { class: "soft" }, "Pick somebody on the map or in the list."));
}

/** Shows somebody's card. */
export async function showCard(id) {
  shown = id;
  const panel = byId("panel-card");
  const head = heading(id, "", colourOf(id) ?? GREY);
  panel.replaceChildren(head, waiting("Looking them up …"));
  try {
    const parts = world.cohorts.has(id) ? ofCohort(world.cohorts.get(id)) : await ofPersona(id);
    if (shown !== id) return; // somebody else was picked meanwhile
    panel.replaceChildren(...parts.filter(Boolean));
    showActions();
    speak(`Card of ${nameOf(id)}`);
  } catch (error) {
    if (shown === id) panel.replaceChildren(head, problem(error, () => showCard(id)));
  }
}

function showActions() {
  const place = byId("card-actions");
  if (!place) return;
  const made = world.made.has(shown);
  place.replaceChildren(inviteButton(shown), made ? button("Delete", () => forget(shown), { class: "danger" }) : "");
}

async function forget(id) {
  const name = nameOf(id);
  try {
    await remove(`v1/personas/${encodeURIComponent(id)}`);
    world.forget(id);
    shown = null;
    byId("panel-card").replaceChildren(
      h("p", { role: "status" }, `${name} is deleted; nothing of them is left on the server.`),
    );
  } catch (error) {
    byId("card-actions").append(problem(error));
  }
}

const heading = (id, about, colour) =>
  h("header", { class: "card-head" }, h("h2", {}, dot(colour), nameOf(id)), h("span", { class: "soft" }, about));

const facts = (pairs) =>
  h("dl", { class: "facts" }, pairs.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));

// cohorts ---------------------------------------------------------------------------------------------------------
function ofCohort(card) {
  const { minimum, people } = world.about;
  const few = card.people === null;
  const colour = colourOf(card.id);
  const rows = card.answers.map((cell) => ({ ...cell, label: `${titleOf(cell.name)}: ${cell.value}` }));
  const traits = card.traits.map((cell) => ({ ...cell, label: `${cell.name}: ${cell.value}` }));
  const size = few ? `fewer than ${minimum} people, or so few that others would give them away` : `${count(card.people)} people`;
  const all = h("details", { class: "all", toggle: ({ target }) => target.open && showAll(target, card.id) });
  all.append(h("summary", {}, "All answers and traits"));
  return [
    heading(card.id, size, colour),
    h("p", { class: "label" }, card.label || "Nothing tells this cohort from everybody."),
    h("div", { class: "actions", id: "card-actions" }),
    facts([
      !few && ["of everybody", percent(card.people / people)],
      card.distance !== null && ["mean distance from the centre", card.distance.toFixed(2)],
    ]),
    ...section("Telling answers", "What they really answered, with 95 % intervals.", card.id, colour, rows),
    rows.length ? null : h("p", { class: "soft" }, `No answer is told by ${minimum} of its people or more.`),
    ...section("Traits that stand out", "", card.id, colour, traits),
    traits.length ? null : h("p", { class: "soft" }, "No trait stands out."),
    all,
  ];
}

function section(title, about, id, colour, rows) {
  if (!rows.length) return [h("h3", {}, title)];
  const name = nameOf(id);
  return [
    h("h3", {}, title),
    about && h("p", { class: "soft small" }, about),
    legend([{ name, colour, as: "round" }, { name: "everybody", colour: GREY, as: "tick" }]),
    profile(`${title} of ${name}`, name, colour, rows),
  ];
}

/** Every answer and trait of a cohort; cells of too few people say so. */
async function showAll(details, id) {
  if (details.querySelector("table")) return;
  const note = waiting("Loading all of them …");
  details.append(note);
  try {
    const card = await get(`v1/cohorts/${encodeURIComponent(id)}`);
    const { minimum } = world.about;
    const rows = (cells, name) =>
      cells.map((cell) => asCells({ ...cell, label: `${name(cell.name)}: ${cell.value}` }, true, minimum));
    const headers = ["", "here", "95 %", "everybody", "people"];
    note.replaceWith(
      h("p", { class: "soft small" }, `Cells of fewer than ${minimum} people, and those that would give them away, are left out.`),
      h("h3", {}, "Traits"),
      table(headers, rows(card.traits, (name) => name), `Traits of ${id}`),
      h("h3", {}, "Answers"),
      table(headers, rows(card.answers, titleOf), `Answers of ${id}`),
    );
  } catch (error) {
    note.replaceWith(problem(error));
  }
}

// anybody else ----------------------------------------------------------------------------------------------------
async function ofPersona(id) {
  const [card, rows] = await Promise.all([persona(id), expected(id)]);
  const colour = colourOf(card.cohort ?? "") ?? COLOURS[0];
  return [
    heading(id, KINDS[card.kind] ?? card.kind, colour),
    card.label && card.label !== nameOf(id) && h("p", { class: "label" }, card.label),
    h("div", { class: "actions", id: "card-actions" }),
    facts([
      ["still uncertain", percent(card.uncertainty)],
      card.cohort && ["nearest cohort", button(card.cohort, () => world.pick(card.cohort), { class: "link" })],
      card.people !== null && ["people", count(card.people)],
    ]),
    h("p", { class: "soft small" }, card.note),
    ...(rows.length
      ? section("Where they differ most", "What the opinion model expects them to answer: predictions.", id, colour, rows)
      : []),
  ];
}

/** The predicted answers that are furthest from what everybody answered, one a question. */
async function expected(id) {
  const known = [...world.questions.values()].filter((q) => q.population.every((share) => share !== null)).slice(0, 2000);
  if (!known.length) return [];
  const [found] = await answers([id], known.map((q) => q.id), { by: "opinion model" });
  return known
    .map((q, j) => {
      const gain = q.options.map((option, k) => found[j].get(option) - q.population[k]);
      const k = gain.indexOf(Math.max(...gain));
      const label = `${titleOf(q.id)}: ${q.options[k]}`;
      return { label, gain: gain[k], share: found[j].get(q.options[k]), population: q.population[k] };
    })
    .sort((a, b) => b.gain - a.gain)
    .slice(0, MOST_PREDICTED);
}
