// The map: people on a canvas, groups as buttons above it, lines and ellipses as SVG above both. A canvas draws ten
// thousand people in a few milliseconds on any machine, before Plotly's script has even come; and Plotly's own fast
// scatter compiles code from strings, which the page's Content-Security-Policy forbids.

import { button, h } from "./dom.js";
import { listen } from "./hands.js";
import { COLOURS, GREY, colourOf, count, nameOf, placeOf, world } from "./world.js";

const NEAR = 14; // pixels from a click to the person it means
const MARGIN = 34; // pixels around the outermost people
const IN_95 = 2.4477; // radius of the ellipse that holds 95 % of a two-dimensional normal distribution
const STEP = 1.5; // of one zoom
const LINE = 25; // pixels of a name, and of the room below it
const SVG = "http://www.w3.org/2000/svg";
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class PeopleMap {
  /** @param root an empty element */
  constructor(root) {
    this.root = root;
    this.zoom = 1;
    this.middle = [0, 0]; // of what is seen, in the units of the map
    this.shown = "cohorts"; // or "known", or the name of a trait
    this.drawn = { line: null, trail: [], you: null, rings: [] };
    this.leaders = []; // from groups to their names, in pixels
  }

  /** Draws the people; before that the element says that it is loading. */
  open() {
    const { people } = world.map;
    this.x = Float32Array.from(people.x);
    this.y = Float32Array.from(people.y);
    this.canvas = h("canvas", { tabindex: 0, role: "img", "aria-label": this._aboutCanvas(), class: "people" });
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("aria-hidden", "true");
    this.marks = h("div", { class: "marks" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.axes = world.map.axes.map((axis, i) => {
      const title = world.questions.get(axis.question)?.title || axis.question;
      return h("p", { class: `axis axis-${i}` }, `${title}: ${axis.towards} ${i ? "↑" : "→"}`);
    });
    const zoom = h(
      "div",
      { class: "zoom", role: "group", "aria-label": "Zoom" },
      button("+", () => this.zoomBy(STEP), { "aria-label": "Closer" }),
      button("−", () => this.zoomBy(1 / STEP), { "aria-label": "Further away" }),
      button("⤢", () => this.fit(), { "aria-label": "Everybody" }),
    );
    this.root.replaceChildren(this.canvas, this.marks, this.svg, ...this.axes, this.tip, zoom);
    this.root.setAttribute("aria-busy", "false");
    listen(this);
    this.fit();
    const flat = Math.min(0.85, Math.max(0.55, this.extent[1] / this.extent[0] + 0.1));
    this.root.style.aspectRatio = `1 / ${flat}`; // as people lie, if it is a good shape for a map
    new ResizeObserver(() => this._resize()).observe(this.root);
    this._resize();
  }

  _aboutCanvas() {
    const n = count(world.map.people.id.length);
    return `Map of ${n} people. Arrow keys move it, plus and minus zoom; the list below finds anybody.`;
  }

  // where things are ------------------------------------------------------------------------------------------------
  /** The middle of everybody, and pixels a unit at zoom 1. */
  fit() {
    const range = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
    const [[left, right], [low, high]] = [range(this.x), range(this.y)];
    this.extent = [right - left || 1, high - low || 1];
    this.middle = [(left + right) / 2, (low + high) / 2];
    this.zoom = 1;
    this.draw();
  }

  get scale() {
    const { width, height } = this.size;
    return this.zoom * Math.min((width - 2 * MARGIN) / this.extent[0], (height - 2 * MARGIN) / this.extent[1]);
  }

  /** Pixels of a point of the map. */
  at({ x, y }) {
    const { width, height } = this.size;
    return [width / 2 + (x - this.middle[0]) * this.scale, height / 2 - (y - this.middle[1]) * this.scale];
  }

  zoomBy(factor, pixel = null) {
    const { width, height } = this.size;
    const [px, py] = pixel ?? [width / 2, height / 2];
    const before = this.scale;
    this.zoom = Math.min(40, Math.max(1, this.zoom * factor));
    const change = 1 / before - 1 / this.scale; // what is under the pixel stays there
    this.middle = [this.middle[0] + (px - width / 2) * change, this.middle[1] - (py - height / 2) * change];
    this.draw();
  }

  moveBy(dx, dy) {
    this.middle = [this.middle[0] - dx / this.scale, this.middle[1] + dy / this.scale];
    this.draw();
  }

  /** The person nearest to a pixel, as a row; -1 where nobody is near. */
  near(px, py) {
    const [x0, y0] = this.at({ x: 0, y: 0 });
    const s = this.scale;
    let [best, row] = [NEAR ** 2, -1];
    for (let i = 0; i < this.x.length; i++) {
      const away = (x0 + this.x[i] * s - px) ** 2 + (y0 - this.y[i] * s - py) ** 2;
      if (away < best) [best, row] = [away, i];
    }
    return row;
  }

  // drawing ---------------------------------------------------------------------------------------------------------
  _resize() {
    const { width, height } = (this.size = { width: this.root.clientWidth, height: this.root.clientHeight });
    const sharp = devicePixelRatio || 1;
    this.canvas.width = width * sharp;
    this.canvas.height = height * sharp;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.draw();
  }

  /** What stands on the map as marks, and how people are coloured: "cohorts", "known" or a trait. */
  show(what) {
    this.shown = what;
    this.draw();
  }

  draw() {
    if (!this.size?.width) return;
    const g = this.canvas.getContext("2d");
    const sharp = devicePixelRatio || 1;
    g.setTransform(sharp, 0, 0, sharp, 0, 0);
    g.clearRect(0, 0, this.size.width, this.size.height);
    const radius = Math.min(5, (this.x.length < 3000 ? 2.6 : 1.7) * this.zoom ** 0.35);
    const [x0, y0] = this.at({ x: 0, y: 0 });
    const s = this.scale;
    const { cohort, uncertainty } = world.map.people;
    const known = this.shown === "known";
    g.globalAlpha = this.shown === "cohorts" ? 0.65 : known ? 1 : 0.25;
    const dots = new Map(); // a dot is drawn once for each colour, and copied
    for (let i = 0; i < this.x.length; i++) {
      const px = x0 + this.x[i] * s;
      const py = y0 - this.y[i] * s;
      if (px < -9 || py < -9 || px > this.size.width + 9 || py > this.size.height + 9) continue;
      const colour = known ? "#3b7fc4" : cohort[i] === null ? GREY : COLOURS[cohort[i] % COLOURS.length];
      if (!dots.has(colour)) dots.set(colour, sprite(colour, radius, sharp));
      if (known) g.globalAlpha = 0.08 + 0.92 * (1 - uncertainty[i]) ** 1.5;
      g.drawImage(dots.get(colour), px - radius - 1, py - radius - 1, 2 * radius + 2, 2 * radius + 2);
    }
    this._drawMarks();
    this._drawLines();
  }

  _drawMarks() {
    const groups =
      this.shown === "cohorts" || this.shown === "known"
        ? world.map.cohorts
        : world.map.traits.filter((group) => group.id.startsWith(`trait:${this.shown}=`));
    const key = groups.map((group) => group.id).join();
    if (key !== this.marks.dataset.key) {
      this.marks.dataset.key = key;
      this.marks.replaceChildren(...groups.map((group) => mark(group)));
    }
    const at = groups.map((group) => this.at(group));
    const traits = groups !== world.map.cohorts;
    const beside = traits ? apart(at) : at;
    groups.forEach((_, i) => {
      const [x, y] = beside[i];
      const seen = x > -20 && y > -20 && x < this.size.width + 20 && y < this.size.height + 20;
      this.marks.children[i].hidden = !seen;
      this.marks.children[i].style.transform = `translate(${x}px, ${y}px) translate(${traits ? "0" : "-50%"}, -50%)`;
    });
    this.leaders = traits ? at.map((from, i) => [from, beside[i]]) : [];
  }

  /** A dashed line of a blend, rings around people, and "you": `{line: [a, b], trail, you: {x, y, covariance}, rings}` */
  sketch(drawn) {
    const before = this.drawn.you;
    this.drawn = { line: null, trail: [], you: null, rings: [], ...drawn };
    cancelAnimationFrame(this.moving);
    const after = this.drawn.you;
    if (!before || !after || still.matches || !this.drawn.glide) return this._drawLines(after);
    const begin = performance.now();
    const step = (now) => {
      const t = Math.min(1, (now - begin) / 600);
      this._drawLines(between(before, after, 1 - (1 - t) ** 3));
      if (t < 1) this.moving = requestAnimationFrame(step);
    };
    this.moving = requestAnimationFrame(step);
    return undefined;
  }

  _drawLines(you = this.drawn.you) {
    if (!this.size?.width) return;
    const parts = [];
    const add = (tag, attributes) => {
      const element = document.createElementNS(SVG, tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      parts.push(element);
    };
    for (const [from, to] of this.leaders) {
      add("polyline", { class: "leader", points: `${from} ${to}` });
      add("circle", { class: "trait", cx: from[0], cy: from[1], r: 5 });
    }
    for (const { place, colour } of this.drawn.rings) {
      const [cx, cy] = this.at(place);
      const r = radiusOf(place);
      add("circle", { class: "halo", cx, cy, r });
      add("circle", { class: "ring", cx, cy, r, style: colour ? `stroke:${colour}` : "" });
    }
    if (this.drawn.line) {
      add("polyline", { class: "blend", points: this._from(...this.drawn.line).join(" ") });
    }
    if (this.drawn.trail.length > 1) {
      add("polyline", { class: "trail", points: this.drawn.trail.map((p) => this.at(p).join()).join(" ") });
    }
    if (you) {
      const [cx, cy] = this.at(you);
      if (you.covariance) {
        const { rx, ry, turn } = ellipse(you.covariance, this.scale);
        add("ellipse", { class: "where", cx, cy, rx, ry, transform: `rotate(${turn} ${cx} ${cy})` });
      }
      add("circle", { class: "you", cx, cy, r: 8, "data-x": you.x, "data-y": you.y });
    }
    this.svg.replaceChildren(...parts);
  }

  /** A line between two rings, in pixels. */
  _from(a, b) {
    const [[x0, y0], [x1, y1]] = [this.at(a), this.at(b)];
    const long = Math.hypot(x1 - x0, y1 - y0) || 1;
    const [ux, uy] = [(x1 - x0) / long, (y1 - y0) / long];
    const [r0, r1] = [radiusOf(a), radiusOf(b)];
    if (long < r0 + r1) return [];
    return [[x0 + r0 * ux, y0 + r0 * uy], [x1 - r1 * ux, y1 - r1 * uy]];
  }

  /** Pixels of anybody, for whoever has to point at them. */
  pixelOf(id) {
    return this.at(placeOf(id));
  }
}

function sprite(colour, radius, sharp) {
  const side = Math.ceil((2 * radius + 2) * sharp);
  const dot = h("canvas", { width: side, height: side });
  const g = dot.getContext("2d");
  g.fillStyle = colour;
  g.arc(side / 2, side / 2, radius * sharp, 0, 7);
  g.fill();
  return dot;
}

/** Of the ring around somebody: a cohort's goes around its mark. */
const radiusOf = (place) => (place.id?.startsWith("trait:") === false ? 19 : 9);

/** Where names stand beside their points so that none covers another. */
function apart(points) {
  const order = points.map((_, i) => i).sort((i, j) => points[i][1] - points[j][1]);
  const tops = order.map((i) => points[i][1]);
  for (let k = 1; k < tops.length; k++) tops[k] = Math.max(tops[k], tops[k - 1] + LINE);
  const lower = tops.reduce((sum, top, k) => sum + top - points[order[k]][1], 0) / (tops.length || 1);
  const right = Math.max(...points.map(([x]) => x)) + 2 * LINE;
  const found = [];
  order.forEach((i, k) => (found[i] = [right, tops[k] - lower]));
  return found;
}

function mark(group) {
  const cohort = !group.id.startsWith("trait:");
  const people = group.people === null ? "" : `, ${count(group.people)} people`;
  return h(
    "button",
    {
      type: "button",
      class: cohort ? "mark" : "mark wide",
      style: cohort ? `background:${colourOf(group.id)}` : null,
      "aria-label": `${nameOf(group.id)}${people}${cohort && group.label ? `, ${group.label}` : ""}`,
      title: `${nameOf(group.id)}${people}`,
      "data-id": group.id,
      click: () => world.pick(group.id),
    },
    cohort ? group.id.replace("cohort-", "") : group.label,
  );
}

/** Half axes in pixels and angle in degrees of the 95 % ellipse of a covariance; down is positive on a screen. */
export function ellipse([[a, b], [, c]], scale) {
  const [mean, spread] = [(a + c) / 2, Math.hypot((a - c) / 2, b)];
  const radius = (variance) => IN_95 * Math.sqrt(Math.max(variance, 0)) * scale;
  return { rx: radius(mean + spread), ry: radius(mean - spread), turn: (-90 / Math.PI) * Math.atan2(2 * b, a - c) };
}

function between(a, b, t) {
  const mix = (u, v) => (Array.isArray(u) ? u.map((_, i) => mix(u[i], v[i])) : u + (v - u) * t);
  const covariance = a.covariance && b.covariance ? mix(a.covariance, b.covariance) : b.covariance;
  return { x: mix(a.x, b.x), y: mix(a.y, b.y), covariance };
}
