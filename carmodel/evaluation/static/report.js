// Tables: a click on a heading sorts, a search field hides the rows that do not contain its text.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {
    const heading = button.parentElement, column = heading.cellIndex, body = table.tBodies[0];
    const up = heading.getAttribute("aria-sort") === "descending" || (!heading.ariaSort && heading.classList.contains("text"));
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const sorted = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)], [m, n] = [Number(x), Number(y)];
      if (x === "" || y === "") return (x === "") - (y === "");  // a missing number comes last
      return (up ? 1 : -1) * (Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n);
    });
    table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...sorted);
  }));
}
for (const field of document.querySelectorAll("input[data-table]")) {
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of document.getElementById(field.dataset.table).tBodies[0].rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
    }
  });
}

// The confusion matrix: zoom by changing the size of a cell, move by scrolling.
const matrix = document.getElementById("matrix"), said = document.getElementById("cell");
const rows = [...matrix.querySelectorAll(".rows-names span")], columns = [...matrix.querySelectorAll(".columns-names span")];
const classes = rows.length, READABLE = 9;
let cell = 0;

function zoom(size) {
  const x = (matrix.scrollLeft + matrix.clientWidth / 2) / (cell || size), y = (matrix.scrollTop + matrix.clientHeight / 2) / (cell || size);
  cell = Math.min(60, Math.max(1, size));
  matrix.style.setProperty("--cell", `${cell}px`);
  matrix.classList.toggle("tiny", cell < READABLE);
  matrix.scrollTo(x * cell - matrix.clientWidth / 2, y * cell - matrix.clientHeight / 2);
}
const whole = () => {
  const gutter = parseFloat(getComputedStyle(rows[0].parentElement).width);
  const room = Math.min(matrix.clientWidth, .8 * innerHeight), fits = (room - gutter - 4) / classes;
  return fits >= READABLE ? Math.min(40, fits) : (room - 12) / classes;
};
const fit = () => { cell = 0; zoom(whole()); };
document.getElementById("nearer").addEventListener("click", () => zoom(cell * 1.5));
document.getElementById("farther").addEventListener("click", () => zoom(cell / 1.5));
document.getElementById("fit").addEventListener("click", fit);
matrix.addEventListener("wheel", (event) => {
  if (!event.ctrlKey) return;  // without Ctrl, the wheel scrolls
  event.preventDefault();
  zoom(cell * (event.deltaY < 0 ? 1.2 : 1 / 1.2));
}, { passive: false });
fit();

function say(event) {
  const square = event.target.closest("rect[data-photos]");
  if (!square) return;
  const [truth, answer] = [rows[square.getAttribute("y")].textContent, columns[square.getAttribute("x")].textContent];
  const share = `${Math.round(100 * square.dataset.share)}%`, photos = square.dataset.photos;
  said.textContent = truth === answer
    ? `${truth}: ${photos} right (${share})` : `${truth}: ${photos} taken for ${answer} (${share})`;
}
matrix.addEventListener("pointerover", say);
matrix.addEventListener("click", say);

document.getElementById("find").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase(), drawing = matrix.querySelector("svg");
  drawing.querySelectorAll(".band").forEach((band) => band.remove());
  const found = [];
  rows.forEach((row, i) => {
    const match = wanted !== "" && row.textContent.toLowerCase().includes(wanted);
    row.classList.toggle("found", match);
    columns[i].classList.toggle("found", match);
    if (!match) return;
    found.push(i);
    for (const [x, y, width, height] of [[0, i, classes, 1], [i, 0, 1, classes]]) {
      const band = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      for (const [name, value] of Object.entries({ x, y, width, height, class: "band" })) band.setAttribute(name, value);
      drawing.append(band);
    }
  });
  said.textContent = wanted === "" ? "" : `${found.length} of ${classes} classes`;
  if (found.length === 0) return;
  if (cell < READABLE) zoom(14);
  matrix.scrollTo((found[0] + .5) * cell - matrix.clientWidth / 3, (found[0] + .5) * cell - matrix.clientHeight / 3);
});
