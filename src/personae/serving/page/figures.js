// Figures by Plotly, whose script is fetched when the first one is wanted. Every figure has a table beside it.

import { h, table } from "./dom.js";
import { GREY, percent } from "./world.js";

let script = null;

function plotly() {
  script ??= new Promise((resolve, reject) => {
    const failed = () => reject(new Error("Plotly's script did not load"));
    const element = h("script", { src: "plotly.min.js", load: () => resolve(globalThis.Plotly), error: failed });
    document.head.append(element);
  }).catch((error) => {
    script = null; // the next figure tries again
    throw error;
  });
  return script;
}

const CONFIG = { displayModeBar: false };

/** A figure that follows the page's colours; the table under it says the same in numbers. */
function figure(about, { data, layout }, numbers) {
  const place = h("div", { class: "plot", role: "img", "aria-label": about, style: `height:${layout.height}px` });
  const all = {
    ...layout,
    dragmode: false,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { size: 13, family: "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif" },
    hovermode: "closest",
  };
  plotly()
    .then((Plotly) => Plotly.newPlot(place, data, all, CONFIG))
    .then(() => new ResizeObserver(() => place.clientWidth && globalThis.Plotly.Plots.resize(place)).observe(place))
    .catch(() => {
      place.remove(); // the numbers are there anyway
      numbers.open = true;
    });
  return h("figure", {}, place, numbers);
}

const folded = (content) => h("details", {}, h("summary", {}, "as a table"), content);

// Plotly takes some tags for markup, and words of a survey may hold them
const asText = (words) => words.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const shortened = (words, most) => asText(words.length <= most ? words : `${words.slice(0, most - 1).trimEnd()}…`);

/** What stands above a line of the figure, as beside it there is no room on a telephone. */
const above = (y, words, most) => ({
  y,
  x: 0,
  xref: "paper",
  xanchor: "left",
  yshift: 0,
  yanchor: "bottom",
  text: shortened(words, most),
  showarrow: false,
  align: "left",
});

const SHARES = { tickformat: ".0%", fixedrange: true, zeroline: false, gridcolor: "#8883", tickfont: { size: 11 } };
const HIDDEN = { visible: false, fixedrange: true };
const MARGIN = { l: 4, r: 34, t: 8, b: 28 };

/**
 * Probabilities of a question's options, a bar each of those who answer.
 * @param series [{name, colour, p: (option) => number or null}], everybody last
 */
export function bars(title, options, series) {
  const step = series.length + 1.7; // of an option, in bars
  const height = 24 * step * options.length * 0.72 + MARGIN.t + MARGIN.b + 8;
  const data = series.map(({ name, colour, p }, s) => ({
    type: "bar",
    orientation: "h",
    name: asText(name),
    y: options.map((_, i) => -(i * step + s)),
    x: options.map((option) => p(option) ?? 0),
    text: options.map((option) => (p(option) === null ? "too few" : percent(p(option)))),
    textposition: "outside",
    cliponaxis: false,
    width: 0.86,
    marker: { color: colour },
    hovertemplate: `${asText(name)}: %{x:.1%}<extra></extra>`,
  }));
  const layout = {
    height,
    showlegend: false,
    margin: MARGIN,
    xaxis: { ...SHARES, range: [0, 1.04] },
    yaxis: { ...HIDDEN, range: [-(options.length * step) + 0.9, 1.5] },
    annotations: options.map((option, i) => above(-(i * step) + 0.42, option, 60)),
  };
  const rows = options.map((option) => [
    option,
    ...series.map(({ p }) => (p(option) === null ? "too few to show" : percent(p(option)))),
  ]);
  const numbers = folded(table(["", ...series.map(({ name }) => name)], rows, title));
  return figure(`${title}: probabilities of the options`, { data, layout }, numbers);
}

/**
 * Shares beside everybody's, with intervals where there are any.
 * @param rows [{label, share, low, high, population, count, n}]
 */
export function profile(title, name, colour, rows) {
  const y = rows.map((_, i) => -i);
  const cell = (row) =>
    row.low === null || row.low === undefined ? [0, 0] : [row.high - row.share, row.share - row.low];
  const text = rows.map((row) => asText(row.label));
  const data = [
    {
      x: rows.map((row) => row.population),
      y,
      text,
      mode: "markers",
      name: "everybody",
      marker: { color: GREY, symbol: "line-ns", size: 11, line: { color: GREY, width: 3 } },
      hovertemplate: "%{text}<br>everybody %{x:.0%}<extra></extra>",
    },
    {
      x: rows.map((row) => row.share),
      y,
      text,
      mode: "markers",
      name: asText(name),
      marker: { color: colour, size: 11 },
      error_x: {
        type: "data",
        symmetric: false,
        array: rows.map((row) => cell(row)[0]),
        arrayminus: rows.map((row) => cell(row)[1]),
        color: colour,
        thickness: 2,
        width: 0,
      },
      hovertemplate: `%{text}<br>${asText(name)} %{x:.0%}<extra></extra>`,
    },
  ];
  const layout = {
    height: 44 * rows.length + MARGIN.t + MARGIN.b + 16,
    showlegend: false,
    margin: { ...MARGIN, l: 10, r: 14 },
    xaxis: { ...SHARES, range: [-0.02, 1.02] },
    yaxis: { ...HIDDEN, range: [-rows.length + 0.45, 0.75] },
    annotations: rows.map((row, i) => above(-i + 0.18, row.label, 62)),
  };
  const observed = rows.some((row) => cell(row)[0] || cell(row)[1]);
  const headers = ["", "here", ...(observed ? ["95 %"] : []), "everybody", ...(observed ? ["people"] : [])];
  const numbers = folded(table(headers, rows.map((row) => asCells(row, observed)), title));
  return figure(title, { data, layout }, numbers);
}

/** A row of `profile` as cells of a table; where too few people are behind it, it says so. */
export function asCells(row, observed = true, minimum = 10) {
  const shown = row.share !== null;
  const between = shown && row.low !== null && row.low !== undefined;
  return [
    row.label,
    shown ? percent(row.share) : `fewer than ${minimum}`,
    ...(observed ? [between ? `${percent(row.low)} – ${percent(row.high)}` : "–"] : []),
    row.population === null ? "–" : percent(row.population),
    ...(observed ? [shown && row.n !== null ? `${row.count} of ${row.n}` : "–"] : []),
  ];
}

/** Which colour is whom; a line of text, so that it breaks where the page is narrow. */
export function legend(entries, shape = "square") {
  const swatch = (colour, shape) =>
    h("span", { class: `dot ${shape}`, style: `background:${colour}`, "aria-hidden": "true" });
  return h(
    "p",
    { class: "legend" },
    entries.map(({ name, colour, as = shape }) => h("span", {}, swatch(colour, as), name)),
  );
}
