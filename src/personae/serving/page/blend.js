// Between two people or groups: a slider, a point that moves on the map, and what changes in the answers.

import { answers, post } from "./api.js";
import { inviteButton } from "./company.js";
import { button, byId, h, latest, problem, waiting } from "./dom.js";
import { compared } from "./ask.js";
import { legend } from "./figures.js";
import { COLOURS, cohortNumber, nameOf, placeOf, titleOf, world } from "./world.js";

const MOST_COMPARED = 2; // questions whose answers are shown while the point moves
const newest = latest();
const ends = [null, null];
let next = 0; // the end that the next click on the map sets
let map = null;
let differing = []; // questions on which the two ends differ most

export function openBlend(peopleMap) {
  map = peopleMap;
  const slider = h("input", { id: "weight", type: "range", min: 0, max: 100, value: 50, input: move, change: predict });
  byId("panel-blend").replaceChildren(
    h("p", { class: "soft" }, "Pick two on the map or in the list, and move between them."),
    h("div", { class: "ends", id: "ends" }),
    h("label", {}, h("span", { id: "weight-text" }, "Weights"), slider),
    h("div", { class: "actions", id: "blend-actions" }),
    h("div", { id: "blend-answers", "aria-live": "polite" }),
  );
  world.on("company", showActions);
  showEnds();
}

/** Whoever is picked while this panel is open becomes one end. */
export async function pickEnd(id) {
  if (!placeOf(id)) return;
  if (ends[1 - next] === id) return;
  ends[next] = id;
  next = 1 - next;
  showEnds();
  await compare();
}

/** Draws the two ends again, e.g. when the panel is opened. */
export function drawBlend() {
  if (ends[0] && ends[1]) move();
  else map.sketch({ rings: ends.filter(Boolean).map((id) => ({ place: placeOf(id) })) });
}

/** The two ends that are there when nobody chose any. */
export function suggest([a, b]) {
  if (ends[0] || !b) return;
  [ends[0], ends[1]] = [a, b];
  showEnds();
  compare();
}

const weight = () => Number(byId("weight").value) / 100; // of the second end
const blend = () => {
  const w = weight();
  const parts = [[ends[0], 1 - w], [ends[1], w]].filter(([, part]) => part > 0);
  return Object.fromEntries(parts);
};
const name = () => {
  const w = Math.round(100 * weight());
  return `${100 - w} % ${nameOf(ends[0])} + ${w} % ${nameOf(ends[1])}`;
};

function showEnds() {
  const choose = (i) =>
    button(ends[i] ? nameOf(ends[i]) : "pick on the map", () => ((next = i), showEnds()), {
      class: next === i ? "end next" : "end",
      "aria-pressed": String(next === i),
      "aria-label": `${i ? "To" : "From"}: ${ends[i] ? nameOf(ends[i]) : "nobody"}; the next pick sets ${next === i ? "this" : "the other"}`,
    });
  byId("ends").replaceChildren(choose(0), h("span", { "aria-hidden": "true" }, "→"), choose(1));
  byId("weight").disabled = !(ends[0] && ends[1]);
  drawBlend();
}

function move() {
  const [a, b] = ends.map(placeOf);
  if (!a || !b) return;
  const w = weight();
  const you = { x: a.x + w * (b.x - a.x), y: a.y + w * (b.y - a.y) };
  map.sketch({ line: [a, b], you, rings: [{ place: a }, { place: b }] });
  byId("weight-text").textContent = name();
  byId("weight").setAttribute("aria-valuetext", name());
  showActions();
}

function showActions() {
  if (!(ends[0] && ends[1])) return;
  byId("blend-actions").replaceChildren(
    inviteButton(name(), blend()),
    button("Keep it on the server", keep, { class: "quiet" }),
  );
}

async function keep() {
  try {
    const card = await post("v1/personas", { blend: blend(), label: name() });
    world.remember(card);
    world.pick(card.id);
  } catch (error) {
    byId("blend-actions").append(problem(error));
  }
}

/** Finds the questions that divide the two ends, and shows them. */
async function compare() {
  if (!(ends[0] && ends[1])) return;
  const place = byId("blend-answers");
  place.replaceChildren(waiting("Comparing the two …"));
  try {
    const asked = [...world.questions.values()].slice(0, 1000);
    const [a, b] = await answers(ends, asked.map((q) => q.id), { by: "opinion model" });
    const distance = (j) => asked[j].options.reduce((sum, o) => sum + Math.abs(a[j].get(o) - b[j].get(o)), 0) / 2;
    const order = asked.map((_, j) => j).sort((i, j) => distance(j) - distance(i));
    differing = order.slice(0, MOST_COMPARED).map((j) => ({ question: asked[j], a: a[j], b: b[j] }));
    await predict();
  } catch (error) {
    place.replaceChildren(problem(error, compare));
  }
}

async function predict() {
  const place = byId("blend-answers");
  try {
    const found = await newest((signal) =>
      answers([{ blend: blend() }], differing.map((d) => d.question.id), { by: "opinion model", signal }),
    );
    if (!found) return;
    const colour = (i) => COLOURS[Math.max(0, cohortNumber(ends[i]))];
    const second = colour(1) === colour(0) ? COLOURS[11] : colour(1);
    const third = COLOURS.toReversed().find((c) => c !== colour(0) && c !== second);
    const series = (d, j) => [
      { name: nameOf(ends[0]), colour: colour(0), p: (o) => d.a.get(o) },
      { name: "the blend", colour: third, p: (o) => found[0][j].get(o) },
      { name: nameOf(ends[1]), colour: second, p: (o) => d.b.get(o) },
    ];
    place.replaceChildren(
      h("h3", {}, "Where the two differ most"),
      h("p", { class: "soft small" }, "Predictions of the opinion model."),
      legend(series(differing[0], 0)),
      ...differing.flatMap((d, j) => compared(d.question, series(d, j))),
    );
  } catch (error) {
    place.replaceChildren(problem(error, predict));
  }
}
