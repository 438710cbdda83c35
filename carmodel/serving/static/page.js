// Photos are answered one by one, so that each shows its answer or its error as soon as it is there.
const $ = (selector) => document.querySelector(selector);
const MAX_BYTES = 20_000_000;
const TOP_K = 5;
const GONE =
  "The endpoint does not answer. Start it again with “make serve”, or check that it still runs. Then try again.";
const MARKS = { certain: "certain", likely: "likely", unsure: "not sure" };

const photos = []; // {name, file, url, box, answer, error, item}
let shown = null; // the photo in the large view
let waiting = 0; // photos that are still to be answered
let about = { classes: [], examples: [], crops: true };

// Make an element: make("li", {className: "x"}, child, "text").
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

const percent = (probability) => `${(100 * probability).toFixed(1)}%`;

// Models of earlier versions answer without `certain`.
function mark(answer) {
  if (answer.certain === true) return "certain";
  return answer.probability >= 0.5 ? "likely" : "unsure";
}

function toBase64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("The file cannot be read."));
    reader.readAsDataURL(file);
  });
}

// Return the answer to a photo. An error of the whole endpoint has the property `gone`.
async function ask(photo) {
  const row = { image: await toBase64(photo.file), ...photo.box };
  const body = JSON.stringify({ dataframe_records: [row], params: { top_k: TOP_K } });
  let response;
  try {
    response = await fetch("invocations", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  } catch {
    throw Object.assign(new Error(GONE), { gone: true });
  }
  if (response.status >= 502) throw Object.assign(new Error(GONE), { gone: true });
  if (!response.ok) throw new Error(`The endpoint refused the photo (HTTP status ${response.status}).`);
  return (await response.json()).predictions[0];
}

// Return whether a newer box was drawn, or the photo was removed, while the answer was computed.
const isOld = (photo, box) => photo.box !== box || !photos.includes(photo);

async function classify(photo) {
  const box = photo.box;
  photo.error = null;
  photo.gone = false;
  try {
    const answer = await ask(photo);
    if (isOld(photo, box)) return;
    photo.answer = answer;
    photo.error = answer.error;
    $("#problem").hidden = true;
  } catch (error) {
    if (isOld(photo, box)) return;
    photo.answer = null;
    photo.error = error.gone ? "no answer" : error.message;
    photo.gone = Boolean(error.gone);
    if (error.gone) {
      $("#problem span").textContent = error.message;
      $("#problem").hidden = false;
    }
  }
  render(photo);
}

async function add(files) {
  const added = [...files].map((file) => ({ name: file.name, file, url: URL.createObjectURL(file), box: null }));
  if (added.length === 0) return;
  for (const photo of added) {
    photo.item = make("button", { type: "button", onclick: () => show(photo) });
    $("#photos ul").append(make("li", {}, photo.item));
    photos.push(photo);
    render(photo);
  }
  show(added[0]);
  await answer(added);
}

async function answer(list) {
  const began = performance.now();
  let done = 0;
  waiting += list.length;
  report();
  for (const photo of list) {
    if (photo.file.size > MAX_BYTES) photo.error = "The file is larger than 20 MB.";
    else if (photos.includes(photo)) await classify(photo);
    waiting -= 1;
    if (photos.includes(photo)) {
      done += 1;
      render(photo);
    }
    report();
  }
  if (waiting === 0) {
    const seconds = (performance.now() - began) / 1000;
    const text = `${done} ${done === 1 ? "photo" : "photos"} answered in ${seconds.toFixed(1)} s`;
    $("#status").textContent = done > 0 ? text : ""; // none if they were removed meanwhile
  }
}

function report() {
  const bar = $("#progress progress");
  $("#progress").hidden = waiting === 0;
  bar.max = photos.length;
  bar.value = Math.max(photos.length - waiting, 0);
  if (waiting > 0) $("#status").textContent = `${waiting} ${waiting === 1 ? "photo" : "photos"} to go …`;
}

function render(photo) {
  const { answer, error } = photo;
  let text = make("small", { textContent: "waiting …" });
  if (error) text = make("span", { className: "error", textContent: error });
  else if (answer) text = make("span", {}, make("strong", { textContent: answer.label }), " ", badge(answer));
  const image = make("img", { src: photo.url, alt: "", onerror: (event) => event.target.remove() });
  photo.item.replaceChildren(image, make("small", { textContent: photo.name }), text);
  $("#photos").hidden = photos.length < 2;
  if (photo === shown) show(photo);
}

function badge(answer) {
  const kind = mark(answer);
  return make("span", { className: `mark ${kind}`, textContent: `${MARKS[kind]}, ${percent(answer.probability)}` });
}

// Show a photo in the large view.
function show(photo) {
  const image = $("#result img");
  if (shown !== photo) {
    shown?.item.removeAttribute("aria-pressed");
    shown = photo;
    image.alt = `Your photo ${photo.name}`;
    image.src = photo.url;
  }
  photo.item.setAttribute("aria-pressed", "true");
  $("#result").hidden = false;
  $("#result figcaption").textContent = photo.name;
  $("#whole").hidden = photo.box === null;
  drawBox(photo.box);
  const { answer, error } = photo;
  const parts = [];
  if (error) parts.push(make("p", { className: "error", textContent: `${photo.name}: ${error}` }));
  else if (!answer) parts.push(make("p", { textContent: "Waiting for the answer …" }));
  else {
    parts.push(make("p", { className: "first", textContent: answer.label }), make("p", {}, badge(answer)));
    const others = answer.top_k.slice(1).map((car) =>
      make("li", {}, make("span", { textContent: car.label }), make("span", { textContent: percent(car.probability) }),
        make("meter", { value: car.probability, ariaLabel: `Probability of ${car.label}` })));
    parts.push(make("ol", { ariaLabel: "Other answers" }, ...others));
  }
  $("#answer").replaceChildren(...parts);
  const known = !error && answer && about.examples.includes(answer.class_id);
  $("#examples").hidden = !known;
  if (known) {
    $("#examples h2").textContent = `Training photos of ${answer.label}`;
    $("#examples img").alt = `Training photos of ${answer.label}`;
    $("#examples img").src = `examples/${answer.class_id}.jpg`;
  }
}

// The box is in pixels of the photo as displayed, with x2 and y2 exclusive; the overlay is in percent of the photo.
function drawBox(box) {
  const image = $("#result img");
  const inside = (from, to, side) => 0 <= from && from < to && to <= side;
  const valid = box && inside(box.x1, box.x2, image.naturalWidth) && inside(box.y1, box.y2, image.naturalHeight);
  $(".box").hidden = !valid;
  for (const name of ["x1", "y1", "x2", "y2"]) $("#box").elements[name].value = box ? box[name] : "";
  if (!valid) return;
  const place = (pixels, side) => `${(100 * pixels) / side}%`;
  Object.assign($(".box").style, {
    left: place(box.x1, image.naturalWidth),
    top: place(box.y1, image.naturalHeight),
    width: place(box.x2 - box.x1, image.naturalWidth),
    height: place(box.y2 - box.y1, image.naturalHeight),
  });
}

function useBox(box) {
  if (shown === null) return;
  shown.box = box;
  shown.answer = null; // it belongs to the box before
  show(shown);
  answer([shown]);
}

function letBoxBeDrawn() {
  const frame = $(".photo");
  const image = $("#result img");
  let start = null;
  const place = (event) => {
    const area = image.getBoundingClientRect();
    const within = (value, size) => Math.min(Math.max(value, 0), size);
    return {
      x: Math.round(within((event.clientX - area.left) / area.width, 1) * image.naturalWidth),
      y: Math.round(within((event.clientY - area.top) / area.height, 1) * image.naturalHeight),
    };
  };
  const boxTo = (end) => ({
    x1: Math.min(start.x, end.x), y1: Math.min(start.y, end.y),
    x2: Math.max(start.x, end.x), y2: Math.max(start.y, end.y),
  });
  frame.addEventListener("pointerdown", (event) => {
    if (image.naturalWidth === 0 || event.button !== 0 || !about.crops) return;
    event.preventDefault();
    frame.setPointerCapture(event.pointerId);
    start = place(event);
  });
  frame.addEventListener("pointermove", (event) => {
    if (start !== null) drawBox(boxTo(place(event)));
  });
  frame.addEventListener("pointerup", (event) => {
    if (start === null) return;
    const box = boxTo(place(event));
    start = null;
    // A click is not a box.
    if (box.x2 - box.x1 < image.naturalWidth / 50 || box.y2 - box.y1 < image.naturalHeight / 50) drawBox(shown.box);
    else useBox(box);
  });
  frame.addEventListener("pointercancel", () => {
    start = null;
    drawBox(shown.box);
  });
  image.addEventListener("load", () => {
    frame.style.setProperty("--ratio", image.naturalWidth / image.naturalHeight);
    drawBox(shown.box);
  });
  $("#box").addEventListener("submit", (event) => {
    event.preventDefault();
    const values = new FormData(event.target);
    useBox(Object.fromEntries([...values].map(([name, value]) => [name, Number(value)])));
  });
  $("#whole").addEventListener("click", () => useBox(null));
}

// The columns of carmodel-client.
function table() {
  const columns = ["file", "label", "class_id", "probability", "certain", "error", "x1", "y1", "x2", "y2"];
  const quoted = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
  const rows = photos.map((photo) => ({ file: photo.name, ...photo.answer, error: photo.error, ...photo.box }));
  return [columns, ...rows.map((row) => columns.map((column) => row[column]))]
    .map((row) => row.map(quoted).join(",") + "\r\n").join("");
}

function clear() {
  for (const photo of photos) URL.revokeObjectURL(photo.url);
  photos.length = 0;
  shown = null;
  $("#photos ul").replaceChildren();
  for (const id of ["#photos", "#result", "#problem"]) $(id).hidden = true;
  $("#status").textContent = "";
  $("#files").focus();
}

function takeFiles() {
  const input = $("#files");
  input.addEventListener("change", () => {
    add(input.files);
    input.value = "";
  });
  // Drop and paste work anywhere on the page.
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      $("#drop").classList.toggle("over", kind === "dragover");
    });
  }
  document.addEventListener("drop", (event) => add(event.dataTransfer.files));
  document.addEventListener("paste", (event) => add(event.clipboardData.files));
  $("#clear").addEventListener("click", clear);
  $("#download").addEventListener("click", (event) => {
    URL.revokeObjectURL(event.currentTarget.href); // the table of the last download
    event.currentTarget.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  });
  $("#problem button").addEventListener("click", () => answer(photos.filter((photo) => photo.gone)));
}

async function trySample(number) {
  const data = await (await fetch(`samples/${number}.jpg`)).blob();
  add([new File([data], `drawn car ${number + 1}.jpg`, { type: "image/jpeg" })]);
}

async function tellAboutModel() {
  about = await (await fetch("about.json")).json();
  const facts = [about.model, about.accuracy].filter(Boolean).join(" · ");
  $("#model").append(facts, about.run_url ? " · " : "");
  if (about.run_url) $("#model").append(make("a", { href: about.run_url, textContent: "its run in MLflow" }));
  for (let number = 0; number < about.samples; number += 1) {
    const image = make("img", { src: `samples/${number}.jpg`, alt: `Drawn car ${number + 1}` });
    const button = make("button", { type: "button", onclick: () => trySample(number) }, image);
    $("#samples ul").append(make("li", {}, button));
  }
  $("#samples").hidden = about.samples === 0;
  for (const part of ["#result .hint", "#result details"]) $(part).hidden = !about.crops;
  $("#classes summary").textContent = `The ${about.classes.length} models it knows`;
  const items = about.classes.map((name) => make("li", { textContent: name }));
  $("#classes ul").append(...items);
  $("#classes input").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(" ");
    for (const item of items) item.hidden = !words.every((word) => item.textContent.toLowerCase().includes(word));
  });
}

takeFiles();
letBoxBeDrawn();
tellAboutModel();
