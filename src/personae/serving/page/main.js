// Starts the page: loads what is shown, and leads picks and tabs to the panels.

import { alive, get, hasKey, setKey, signals, whenKeyIsNeeded } from "./api.js";
import { openAsk } from "./ask.js";
import { drawBlend, openBlend, pickEnd, suggest } from "./blend.js";
import { openCard, showCard } from "./card.js";
import { openChat, say } from "./chat.js";
import { openCompany } from "./company.js";
import { button, byId, h, problem } from "./dom.js";
import { openFinder } from "./find.js";
import { PeopleMap } from "./map.js";
import { drawMe, openMe } from "./me.js";
import { count, placeOf, world } from "./world.js";

const TABS = ["card", "ask", "chat", "blend", "me"];
const AGAIN = 2000; // milliseconds between looks for a server that is gone

export const map = new PeopleMap(byId("map"));
let open = "card";
let picked = null;

// loading ---------------------------------------------------------------------------------------------------------
async function load() {
  try {
    const [about, drawn, cohorts, questions] = await Promise.all(
      ["v1/about", "v1/map", "v1/cohorts", "v1/questions"].map(get),
    );
    Object.assign(world, { about, map: drawn });
    world.cohorts = new Map(cohorts.data.map((card) => [card.id, card]));
    world.traits = new Map(drawn.traits.map((group) => [group.id, group]));
    world.questions = new Map(questions.data.map((question) => [question.id, question]));
  } catch (error) {
    byId("facts").textContent = "";
    byId("map").replaceChildren(problem(error, load));
    return;
  }
  start();
  const made = await get("v1/personas?limit=100").catch(() => ({ data: [] })); // the list is complete without them, too
  for (const card of made.data) world.remember(card);
}

function start() {
  const { name, people, questions } = world.about;
  document.title = `${name} · personae`;
  byId("title").textContent = name;
  const drawn = world.map.people.id.length;
  const facts = [`${count(people)} people`, `${count(questions)} questions`, `${world.cohorts.size} cohorts`];
  byId("facts").textContent = facts.join(" · ");
  if (drawn < people) byId("map-note").textContent += ` Drawn are ${count(drawn)} of them, at random.`;
  openShow();
  map.open();
  openFinder();
  openCompany();
  openCard();
  openAsk((question) => {
    go("chat");
    say(question);
  });
  openChat();
  openBlend(map);
  openMe(map, (id) => {
    world.invite(id);
    if (world.about.language_model && world.isIn(id)) go("chat");
    else world.pick(id);
  });
  world.on("pick", pick);
  const opposed = furthest();
  for (const id of opposed) world.invite(id);
  pick(opposed[0] ?? "everybody");
  byId("key-button").hidden = !hasKey();
  document.documentElement.dataset.ready = "true";
  performance.mark("interactive");
}

/** The two cohorts that are furthest from each other on the map. */
function furthest() {
  const groups = world.map.cohorts;
  let best = [-1, []];
  groups.forEach((a, i) =>
    groups.slice(i + 1).forEach((b) => {
      const away = Math.hypot(a.x - b.x, a.y - b.y);
      if (away > best[0]) best = [away, [a.id, b.id]];
    }),
  );
  return best[1].length ? best[1] : groups.map((group) => group.id);
}

function openShow() {
  const traits = [...new Set(world.map.traits.map(({ id }) => id.slice(6, id.indexOf("="))))];
  const option = (value, text) => h("option", { value }, text);
  byId("show").replaceChildren(
    option("cohorts", "cohorts"),
    option("known", "how well each is known"),
    ...(traits.length ? [h("optgroup", { label: "groups by" }, traits.map((trait) => option(trait, trait)))] : []),
  );
  byId("show").onchange = ({ target }) => map.show(target.value);
}

// picks and tabs --------------------------------------------------------------------------------------------------
function pick(id) {
  if (open === "blend" && placeOf(id)) return pickEnd(id);
  if ((open === "ask" || open === "chat") && world.invite(id)) return undefined;
  go("card");
  if (picked !== null) reveal();
  picked = id;
  sketch();
  return showCard(id);
}

/** Scrolls to the panel where it is below the map and out of sight. */
function reveal() {
  const panel = byId("panel");
  if (panel.getBoundingClientRect().top > 0.7 * innerHeight) panel.scrollIntoView({ block: "start" });
}

/** Opens a panel; the map shows what belongs to it. */
function go(tab) {
  open = tab;
  byId("main").dataset.tab = tab;
  for (const name of TABS) {
    const here = name === tab;
    byId(`tab-${name}`).setAttribute("aria-selected", String(here));
    byId(`tab-${name}`).tabIndex = here ? 0 : -1;
    byId(`panel-${name}`).hidden = !here;
  }
  if (!world.map) return;
  if (tab === "blend") suggest(furthest());
  sketch();
}

function sketch() {
  if (open === "blend") drawBlend();
  else if (open === "me") drawMe();
  else if (open === "card") map.sketch({ rings: placeOf(picked) ? [{ place: placeOf(picked) }] : [] });
  else {
    const rings = world.company.map(({ id, colour }) => ({ place: placeOf(id), colour }));
    map.sketch({ rings: rings.filter(({ place }) => place) });
  }
}
world.on("company", () => sketch());

for (const name of TABS) byId(`tab-${name}`).addEventListener("click", () => go(name));
document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const to = event.key === "Home" ? 0 : event.key === "End" ? TABS.length - 1 : (TABS.indexOf(open) + step + TABS.length) % TABS.length;
  if (Number.isNaN(to)) return;
  event.preventDefault();
  go(TABS[to]);
  byId(`tab-${TABS[to]}`).focus();
});

// the server ------------------------------------------------------------------------------------------------------
const banner = (...content) => {
  byId("banner").hidden = !content.length;
  byId("banner").replaceChildren(...content);
};

let looking = null;
signals.addEventListener("gone", () => {
  banner("The server does not answer. ", button("Look again", look), " The page looks again by itself.");
  looking ??= setInterval(look, AGAIN);
});
signals.addEventListener("back", () => {
  if (!looking) return;
  clearInterval(looking);
  looking = null;
  banner();
});
async function look() {
  if (!(await alive())) return;
  signals.dispatchEvent(new Event("back"));
  if (!world.map) load();
}

signals.addEventListener("busy", ({ detail: seconds }) => {
  const end = Date.now() + 1000 * seconds;
  const tell = () => {
    const left = Math.ceil((end - Date.now()) / 1000);
    if (left <= 0) return banner();
    banner(`Too many requests at once. Going on in ${left} s.`);
    return setTimeout(tell, 1000);
  };
  tell();
});

/** Asks for the API key; resolves to whether one was given. */
function askForKey(wrong) {
  const dialog = byId("key-dialog");
  byId("key-about").textContent = wrong
    ? "The server does not know this key. Try another."
    : "This server asks for a key. It stays in this tab and is forgotten when the tab closes.";
  byId("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      const given = dialog.returnValue === "use" && byId("key").value.trim();
      if (given) setKey(given);
      byId("key-button").hidden = false;
      resolve(Boolean(given));
    };
  });
}
whenKeyIsNeeded(askForKey);
byId("key-button").addEventListener("click", async () => {
  if (await askForKey(false)) location.reload();
});

load();
