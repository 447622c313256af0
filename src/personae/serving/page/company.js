// Who is asked and talked with: up to three, always in sight above the panels.

import { button, byId, dot, h } from "./dom.js";
import { MOST, nameOf, world } from "./world.js";

export function openCompany() {
  world.on("company", show);
  world.on("made", show);
  show();
}

function show() {
  const chips = world.company.map(({ id, colour }) => {
    const name = nameOf(id);
    const leave = button("×", () => world.dismiss(id), { "aria-label": `Remove ${name}`, title: `Remove ${name}` });
    return h("span", { class: "chip", "data-id": id }, dot(colour), h("span", {}, name), leave);
  });
  const hint =
    world.company.length === 0
      ? "nobody yet: pick somebody and add them"
      : world.company.length < MOST
        ? "add more from a card"
        : "";
  byId("company").replaceChildren(h("span", { class: "soft" }, "Talking with"), ...chips, h("span", { class: "soft" }, hint));
}

/** A button by which somebody joins the conversation, or leaves it. */
export function inviteButton(id, blend = null) {
  if (world.isIn(id)) return button("Remove from conversation", () => world.dismiss(id), { class: "quiet" });
  if (world.company.length < MOST) return button("Add to conversation", () => world.invite(id, blend));
  return h("span", { class: "soft full" }, `The conversation has ${MOST} already; remove one to add ${nameOf(id)}.`);
}
