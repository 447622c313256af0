// What is known of the people, who is looked at, and who answers.

export const MOST = 3; // who answer together
// As in the report: told apart by colour-blind readers too, on white and on black
export const COLOURS = [
  "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377",
  "#ee7733", "#009988", "#7766cc", "#886644", "#99aa55", "#dd88bb",
];
export const GREY = "#8a8f98";

/** Events: "pick" (somebody was clicked, detail: id), "company" (who answers changed), "made" (by answers, or kept). */
export const world = new (class World extends EventTarget {
  about = { name: "", people: 0, minimum: 10, language_model: true };
  map = null;
  cohorts = new Map(); // id -> card
  traits = new Map(); // id -> group of the map
  questions = new Map(); // id -> question
  made = new Map(); // id -> card of a persona that the server remembers
  company = []; // [{id, who, colour}], at most MOST

  tell(event, detail) {
    this.dispatchEvent(new CustomEvent(event, { detail }));
  }

  on(event, listener) {
    this.addEventListener(event, ({ detail }) => listener(detail));
  }

  pick(id) {
    this.tell("pick", id);
  }

  isIn(id) {
    return this.company.some((member) => member.id === id);
  }

  /** Somebody joins those who answer; `blend` maps names to weights where it is no name of the server's. */
  invite(id, blend = null) {
    if (this.isIn(id) || this.company.length === MOST) return false;
    const taken = new Set(this.company.map((member) => member.colour));
    const own = colourOf(id);
    // Somebody of a cohort may meet the cohort: the next free colour then
    const colour = own && !taken.has(own) ? own : COLOURS.toReversed().find((c) => !taken.has(c));
    this.company = [...this.company, { id, blend, colour }];
    this.tell("company");
    return true;
  }

  dismiss(id) {
    this.company = this.company.filter((member) => member.id !== id);
    this.tell("company");
  }

  remember(card) {
    this.made.set(card.id, card);
    this.tell("made");
  }

  forget(id) {
    this.made.delete(id);
    this.dismiss(id);
    this.tell("made");
  }
})();

/** How a member is named in requests: to /v1/answers, and to /v1/chat/completions. */
export const forAnswers = ({ id, blend }) => (blend ? { blend } : id);
export const forChat = ({ id, blend }) => (blend ? { model: "blend", persona: { blend } } : { model: id });

/** The number of a cohort, -1 of anybody else. */
export const cohortNumber = (id) => [...world.cohorts.keys()].indexOf(id);

export function colourOf(id) {
  const number = cohortNumber(id);
  return number < 0 ? null : COLOURS[number % COLOURS.length];
}

/** What a person reads for an id. */
export function nameOf(id) {
  if (world.made.has(id)) return world.made.get(id).label || `persona ${id.slice(-4)}`;
  const trait = /^trait:([^=]*)=(.*)$/s.exec(id);
  return trait ? `${trait[1]}: ${trait[2]}` : id;
}

/** Where somebody of the map is, {x, y}; null for others. */
export function placeOf(id) {
  if (!world.map) return null;
  const group = [...world.map.cohorts, ...world.map.traits].find((g) => g.id === id);
  if (group) return group;
  if (world.made.has(id)) return world.made.get(id).place;
  const i = world.map.people.id.indexOf(id);
  return i < 0 ? null : { x: world.map.people.x[i], y: world.map.people.y[i] };
}

export const titleOf = (question) => world.questions.get(question)?.title || question;
export const count = (n) => n.toLocaleString("en");
export const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
