// What a mouse, a finger and the keyboard do on the map.

import { percent, world } from "./world.js";

const STEP = 1.5; // of one zoom
const MOVE = 40; // pixels of an arrow key
const STILL = 5; // pixels that a click may tremble

/** Lets people move, zoom, hover and click a `PeopleMap`. */
export function listen(map) {
  const { root, canvas, tip } = map;
  const pixel = (event) => {
    const box = root.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  let from = null; // where a drag is
  let moved = false;

  canvas.addEventListener("pointerdown", (event) => {
    from = pixel(event);
    moved = false;
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = pixel(event);
    const scrolls = event.pointerType === "touch" && map.zoom === 1; // then a finger moves the page
    if (!from || scrolls) return hover(map, x, y);
    if (!moved && Math.hypot(x - from[0], y - from[1]) < STILL) return undefined;
    if (!moved) canvas.setPointerCapture(event.pointerId);
    moved = true;
    tip.hidden = true;
    map.moveBy(x - from[0], y - from[1]);
    from = [x, y];
    return undefined;
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (from = null));
  canvas.addEventListener("pointerleave", () => (tip.hidden = true));
  canvas.addEventListener("click", (event) => {
    const row = moved ? -1 : map.near(...pixel(event));
    if (row >= 0) world.pick(world.map.people.id[row]);
  });
  const wheel = (event) => {
    if (!event.ctrlKey && !event.metaKey && map.zoom === 1) return; // the page scrolls
    event.preventDefault();
    map.zoomBy(Math.exp(-event.deltaY / 300), pixel(event));
  };
  root.addEventListener("wheel", wheel, { passive: false });

  const keys = {
    ArrowLeft: () => map.moveBy(MOVE, 0),
    ArrowRight: () => map.moveBy(-MOVE, 0),
    ArrowUp: () => map.moveBy(0, MOVE),
    ArrowDown: () => map.moveBy(0, -MOVE),
    "+": () => map.zoomBy(STEP),
    "=": () => map.zoomBy(STEP),
    "-": () => map.zoomBy(1 / STEP),
    0: () => map.fit(),
  };
  canvas.addEventListener("keydown", (event) => {
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
}

/** Who is under the pointer. */
function hover(map, x, y) {
  const row = map.near(x, y);
  map.tip.hidden = row < 0;
  map.canvas.style.cursor = row < 0 ? "" : "pointer";
  if (row < 0) return;
  const { id, cohort, uncertainty } = world.map.people;
  const of = cohort[row] === null ? "" : ` · cohort-${cohort[row]}`;
  map.tip.textContent = `${id[row]}${of} · ${percent(uncertainty[row])} uncertain`;
  map.tip.style.left = `${Math.min(x + 12, map.size.width - 190)}px`;
  map.tip.style.top = `${y + 14}px`;
}
