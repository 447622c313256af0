// Who answers questions and chats: up to three, always in sight above the panels.

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
  byId("company").replaceChildren(h("span", { class: "soft" }, "Who answers"), ...chips, h("span", { class: "soft" }, hint));
}

/** A button that lets somebody join those who answer, or leave. */
export function inviteButton(id, blend = null) {
  if (world.isIn(id)) return button("Remove from who answers", () => world.dismiss(id), { class: "quiet" });
  const full = world.company.length === MOST;
  const title = full ? `${MOST} at most; remove somebody first` : null;
  return button("Add to who answers", () => world.invite(id, blend), { disabled: full, title });
}
