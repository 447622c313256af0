// The question box: options or none, bars of those who answer beside everybody's.

import { answers } from "./api.js";
import { byId, h, problem, waiting } from "./dom.js";
import { bars, legend } from "./figures.js";
import { GREY, forAnswers, nameOf, titleOf, world } from "./world.js";

/** @param toChat called with a question that has no options */
export function openAsk(toChat) {
  const speaks = world.about.language_model;
  const text = h("textarea", { id: "question", rows: 2, required: true, maxlength: 4000 });
  const options = h("textarea", { id: "options", rows: 3, placeholder: "yes\nno" });
  const known = h("select", { id: "known" }, h("option", { value: "" }, speaks ? "my own" : "choose one"), byTopic());
  const by = h(
    "select",
    { id: "by" },
    h("option", { value: "lm" }, "the steered language model"),
    h("option", { value: "opinion model" }, "the opinion model"),
  );
  const byLabel = h("label", { hidden: true }, "Answered by ", by);
  const results = h("div", { id: "results", "aria-live": "polite", "aria-busy": "false" });

  known.addEventListener("change", () => {
    const question = world.questions.get(known.value);
    text.value = question?.text ?? "";
    options.value = question?.options.join("\n") ?? "";
    byLabel.hidden = !question || !speaks;
  });
  const own = () => {
    if (!known.value) return;
    known.value = ""; // other words make another question
    byLabel.hidden = true;
  };
  text.addEventListener("input", own);
  options.addEventListener("input", own);

  const submit = (event) => {
    event.preventDefault();
    const choices = options.value.split("\n").map((line) => line.trim()).filter(Boolean);
    const question = world.questions.get(known.value) ?? { text: text.value.trim(), options: [...new Set(choices)] };
    if (question.options.length) ask(question, known.value && !byLabel.hidden ? by.value : null, results);
    else toChat(question.text);
  };
  if (!speaks) text.readOnly = options.readOnly = true;
  byId("panel-ask").replaceChildren(
    h(
      "form",
      { submit },
      h("label", {}, speaks ? "A question of the survey, or your own" : "A question of the survey", known),
      h("label", {}, "Question", text),
      h("label", {}, "Options, one a line", speaks ? h("span", { class: "soft" }, " (leave empty to be told in words)") : "", options),
      byLabel,
      h("div", { class: "actions" }, h("button", { type: "submit" }, "Ask")),
      speaks
        ? null
        : h("p", { class: "soft small" }, "This bundle has no language model: the opinion model answers the survey's own questions."),
    ),
    results,
  );
}

function byTopic() {
  const topics = Map.groupBy(world.questions.values(), (question) => question.topic);
  const option = (question) => h("option", { value: question.id }, question.title || question.text);
  return [...topics].flatMap(([topic, asked]) =>
    topic ? [h("optgroup", { label: topic }, asked.map(option))] : asked.map(option),
  );
}

async function ask(question, by, results) {
  const members = world.company;
  if (!members.length) {
    results.prepend(problem(new Error("Nobody answers yet: pick somebody on the map and add them.")));
    return;
  }
  const place = h("article", { class: "result" }, waiting("Asking …"));
  results.prepend(place);
  results.setAttribute("aria-busy", "true");
  const observed = question.id && question.population.some((share) => share !== null);
  const personas = [...members.map(forAnswers), ...(observed ? [] : ["everybody"])];
  const asked = question.id ?? { text: question.text, options: question.options };
  try {
    const found = await answers(personas, [asked], { by });
    const series = members.map(({ id, colour }, i) => ({ name: nameOf(id), colour, p: (o) => found[i][0].get(o) }));
    const share = (option) => question.population[question.options.indexOf(option)];
    series.push({
      name: observed ? "everybody, as observed" : "everybody, on average",
      colour: GREY,
      p: observed ? share : (option) => found.at(-1)[0].get(option),
    });
    const who = by === "opinion model" || !world.about.language_model ? "the opinion model" : "the steered language model";
    place.replaceChildren(
      h("h3", {}, question.text),
      legend(series),
      bars(question.id ? titleOf(question.id) : question.text, question.options, series),
      h("p", { class: "soft small" }, `Predictions of ${who}${observed ? "; everybody is what people really answered" : ""}.`),
    );
  } catch (error) {
    place.replaceChildren(h("h3", {}, question.text), problem(error, () => (place.remove(), ask(question, by, results))));
  } finally {
    results.setAttribute("aria-busy", "false");
  }
}

/** Bars of one question for given people, for other panels. */
export function compared(question, series) {
  return [h("h3", {}, titleOf(question.id)), bars(titleOf(question.id), question.options, series)];
}
