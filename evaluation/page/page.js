"use strict";
// Charts: the pointer or the arrow keys read the values below a figure.
for (const svg of document.querySelectorAll("svg[data-readings]")) {
  const readings = JSON.parse(svg.dataset.readings), output = svg.parentNode.querySelector("output");
  const cursor = svg.querySelector(".cursor"), last = output.textContent;
  let place = readings.length - 1;
  const show = (index) => {
    place = Math.max(0, Math.min(readings.length - 1, index));
    const [x, text] = readings[place];
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.style.visibility = "visible";
    output.textContent = text;
    svg.setAttribute("aria-valuenow", place);
    svg.setAttribute("aria-valuetext", text);
  };
  const leave = () => { cursor.style.visibility = "hidden"; output.textContent = last; };
  const point = (event) => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    let best = 0;
    readings.forEach(([at], i) => { if (Math.abs(at - x) < Math.abs(readings[best][0] - x)) best = i; });
    show(best);
  };
  const moves = { ArrowLeft: () => place - 1, ArrowRight: () => place + 1, Home: () => 0, End: () => readings.length - 1 };
  output.setAttribute("aria-live", "off");                   // the slider speaks for itself
  svg.setAttribute("tabindex", 0);
  svg.setAttribute("role", "slider");
  svg.setAttribute("aria-valuemin", 0);
  svg.setAttribute("aria-valuemax", readings.length - 1);
  svg.setAttribute("aria-valuenow", place);
  svg.setAttribute("aria-valuetext", last);
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    if (moves[event.key]) { event.preventDefault(); show(moves[event.key]()); }
  });
}

// Gallery: filters, and a few scenes at a time.
const form = document.getElementById("filters"), cards = [...document.querySelectorAll(".card")];
if (form) {
  const more = document.getElementById("more"), count = document.getElementById("count"), portion = 24;
  let shown = portion;
  const fits = (card) => [...new FormData(form)].every(([field, value]) =>
    !value || (field === "factors" ? card.dataset.factors.split("|").includes(value) : card.dataset[field] === value));
  const update = () => {
    const found = cards.filter(fits), visible = new Set(found.slice(0, shown));
    for (const card of cards) card.hidden = !visible.has(card);
    count.textContent = `${found.length} of ${cards.length} scenes` + (found.length > visible.size ? `, the first ${visible.size} shown` : "");
    more.hidden = found.length <= visible.size;
  };
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", () => { shown = portion; update(); });
  form.addEventListener("reset", () => setTimeout(() => { shown = portion; update(); }));
  more.addEventListener("click", () => {
    const next = cards.filter(fits)[shown];
    shown += portion;
    update();
    if (next) { next.tabIndex = -1; next.focus(); }
  });
  update();
}
