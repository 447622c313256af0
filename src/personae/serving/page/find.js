// The list below the map: everybody on it can be found and picked without pointing at anything.

import { button, byId, dot, h } from "./dom.js";
import { COLOURS, GREY, colourOf, count, nameOf, percent, world } from "./world.js";

const MOST_FOUND = 40;

export function openFinder() {
  byId("find").addEventListener("input", list);
  byId("find").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    const first = byId("found").querySelector("button");
    if (first) first.click();
    else if (byId("find").value.trim()) world.pick(byId("find").value.trim()); // somebody who is not drawn, or a blend
  });
  world.on("made", list);
  world.on("company", list);
  list();
}

function list() {
  const words = byId("find").value.trim().toLowerCase();
  const found = words ? search(words) : groups();
  byId("found").replaceChildren(...found.slice(0, MOST_FOUND).map(row));
  byId("found-note").textContent = !words
    ? ""
    : found.length > MOST_FOUND
      ? `The first ${MOST_FOUND} of ${count(found.length)}; write more of the name.`
      : found.length
        ? `${found.length} found.`
        : "Nobody on the map has this in their name; Enter looks for exactly this.";
}

/** What is listed before anybody searches: those made here, cohorts, everybody. */
function groups() {
  const made = [...world.made.values()].map((card) => entry(card.id, `made ${when(card.created)}`));
  return [...made, ...[...world.cohorts.values()].map(ofCohort), entry("everybody", count(world.about.people))];
}

function search(words) {
  const { people, traits } = world.map;
  const candidates = [...groups(), ...traits.map((g) => entry(g.id, count(g.people)))];
  const found = candidates.filter(({ id, name, about }) => `${id} ${name} ${about}`.toLowerCase().includes(words));
  people.id.forEach((id, i) => {
    if (!id.toLowerCase().includes(words)) return;
    const cohort = people.cohort[i];
    const colour = cohort === null ? GREY : COLOURS[cohort % COLOURS.length];
    found.push({ id, name: id, about: `${percent(people.uncertainty[i])} uncertain`, colour });
  });
  return found;
}

const when = (seconds) =>
  new Date(1000 * seconds).toLocaleString("en", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hour12: false });

const entry = (id, about) => ({ id, name: nameOf(id), about, colour: colourOf(id) ?? GREY });

function ofCohort(card) {
  const size = card.people === null ? `fewer than ${world.about.minimum}` : count(card.people);
  return entry(card.id, [size, card.label].filter(Boolean).join(" · "));
}

function row({ id, name, about, colour }) {
  const pick = button("", () => world.pick(id), { class: "row", "data-id": id });
  pick.append(dot(colour), h("span", { class: "name" }, name), h("span", { class: "soft about" }, about));
  return h("li", { class: world.isIn(id) ? "in" : null }, pick);
}
