// The gallery of report.html: one of its pictures, by model, beta, seed and condition.
"use strict";
(() => {
  const TITLES = {
    model: "model",
    beta: "β",
    rate: "learning rate",
    seed: "seed",
    condition: "picture",
  };
  const AXES = Object.keys(TITLES);
  // What a choice that has no picture gives up last: the sum of these is the largest.
  const WEIGHTS = { model: 1, rate: 2, seed: 4, beta: 8, condition: 16 };
  const pictures = [...document.querySelectorAll("img[data-condition]")];
  const section = document.getElementById("gallery");
  if (!section || !pictures.length) return;

  const image = document.createElement("img");
  const caption = document.createElement("figcaption");
  const buttons = {}; // axis -> value -> its input
  let chosen = {};

  /** Shows the picture that has all wanted values, and most of those of before. */
  function choose(wanted) {
    const score = (picture) =>
      AXES.reduce((sum, axis) => {
        const value = wanted[axis] ?? chosen[axis];
        const weight = axis in wanted ? 100 : WEIGHTS[axis];
        return sum + (picture.dataset[axis] === value ? weight : 0);
      }, 0);
    const best = pictures.reduce((a, b) => (score(b) > score(a) ? b : a));
    chosen = Object.fromEntries(AXES.map((axis) => [axis, best.dataset[axis]]));
    image.src = best.src;
    image.alt = best.alt;
    image.width = best.width;
    image.className = best.className;
    caption.textContent = best.alt;
    for (const axis of AXES) {
      const input = buttons[axis]?.[chosen[axis]];
      if (input) input.checked = true;
    }
  }

  /** A row of buttons, which arrow keys move in: one of them is pressed. */
  function addButtons(axis) {
    const values = [...new Set(pictures.map((picture) => picture.dataset[axis]))];
    if (values.length < 2) return;
    if (values.every((value) => Number.isFinite(Number(value)))) {
      values.sort((a, b) => a - b);
    }
    const row = document.createElement("fieldset");
    const legend = document.createElement("legend");
    legend.textContent = TITLES[axis];
    row.append(legend);
    buttons[axis] = {};
    for (const value of values) {
      const label = document.createElement("label");
      const input = document.createElement("input");
      const text = document.createElement("span");
      input.type = "radio";
      input.name = axis;
      input.addEventListener("change", () => choose({ [axis]: value }));
      text.textContent = value;
      label.append(input, text);
      row.append(label);
      buttons[axis][value] = input;
    }
    section.append(row);
  }

  AXES.forEach(addButtons);
  const figure = document.createElement("figure");
  caption.setAttribute("aria-live", "polite");
  figure.append(image, caption);
  section.append(figure);
  choose({ ...pictures[0].dataset });
  section.hidden = false;
  for (const link of document.querySelectorAll('nav a[href="#gallery"]')) {
    link.hidden = false;
  }
  for (const point of document.querySelectorAll("a.point")) {
    // The link itself leads to the gallery.
    point.addEventListener("click", () => {
      const { model, beta, rate } = point.dataset;
      choose({ model, beta, rate });
    });
  }
})();
