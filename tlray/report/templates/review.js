"use strict";

// Rows are numbered as drawn. An answer is the index of a class, or NONE; rows without an answer have no entry.
const NONE = -1;
const CLASS_KEYS = "1234567890abcdefghijklmnopqrstuvwxyz";
const PER_PAGE = 48;

const data = JSON.parse(document.getElementById("data").textContent);
const { rows, classes } = data;
const find = (id) => document.getElementById(id);
const numberOf = new Map(rows.map((row, number) => [row.id, number]));

// answers, kept in the browser from the first one on

const answers = new Map();
const steps = []; // to undo: the earlier answers of each step
let kept = true; // whether the browser stores answers
let unsaved = false; // whether answers were given after the last CSV

function readKept() {
  try {
    const stored = JSON.parse(localStorage.getItem(data.key) || "{}");
    answers.clear();
    for (const [id, answer] of Object.entries(stored)) {
      const number = numberOf.get(Number(id));
      if (number !== undefined && Number.isInteger(answer) && answer >= NONE && answer < classes.length) {
        answers.set(number, answer);
      }
    }
  } catch {
    kept = false;
  }
}

function keep() {
  try {
    localStorage.setItem(data.key, JSON.stringify(Object.fromEntries(answered())));
  } catch {
    kept = false;
  }
  unsaved = true;
}

function answered() {
  return [...answers].map(([number, answer]) => [rows[number].id, answer]);
}

function setAnswers(changes) {
  steps.push({ number: shown[at], before: changes.map(([number]) => [number, answers.get(number)]) });
  write(changes);
}

function write(changes) {
  for (const [number, answer] of changes) {
    if (answer === undefined) answers.delete(number);
    else answers.set(number, answer);
  }
  keep();
}

function undo() {
  const step = steps.pop();
  if (!step) return tell("There is nothing to undo.");
  write(step.before);
  at = Math.max(shown.indexOf(step.number), 0);
  tell("Undone.");
  draw();
}

// the rows in view

let grid = false;
let shown = [];
let at = 0; // place in `shown`

const STATES = {
  all: () => true,
  open: (number) => !answers.has(number),
  done: (number) => answers.has(number),
  wrong: (number) => answers.has(number) && answers.get(number) !== rows[number].label,
  none: (number) => answers.get(number) === NONE,
};

function filter() {
  const state = STATES[find("state").value];
  const label = find("label").value;
  shown = rows.map((_, number) => number).filter((number) => state(number) && (label === "" || rows[number].label === Number(label)));
  if (find("order").value === "doubt") shown.sort((one, other) => rows[one].probability - rows[other].probability);
  at = 0;
  draw();
}

function move(by) {
  if (!shown.length) return;
  at = Math.min(Math.max(at + by, 0), shown.length - 1);
  draw();
}

function answer(value) {
  if (!shown.length) return;
  setAnswers([[shown[at], value]]);
  if (answers.size === rows.length) tell("All rows are reviewed: save the CSV.");
  else tell("");
  if (at < shown.length - 1) at += 1;
  draw();
}

function answerRest() {
  const open = listPage().filter((number) => !answers.has(number));
  if (!open.length) return tell("Every row of this page is reviewed.");
  setAnswers(open.map((number) => [number, rows[number].label]));
  tell(`${open.length} rows are marked right; undo takes it back.`);
  const next = firstOfPage() + PER_PAGE;
  if (next < shown.length) at = next;
  draw();
}

function firstOfPage() {
  return Math.floor(at / PER_PAGE) * PER_PAGE;
}

function listPage() {
  return shown.slice(firstOfPage(), firstOfPage() + PER_PAGE);
}

// pictures, embedded in blocks that are parsed when one of their rows comes into view

const blocks = [...document.querySelectorAll("script.pictures")];
const parsed = new Map();

function findPicture(number) {
  const block = Math.floor(number / data.per_block);
  if (!parsed.has(block)) parsed.set(block, JSON.parse(blocks[block].textContent));
  return parsed.get(block)[number % data.per_block];
}

function showPicture(frame, number) {
  const uri = findPicture(number);
  const picture = frame.querySelector("img");
  picture.hidden = uri === null;
  if (uri === null) picture.removeAttribute("src");
  else if (picture.getAttribute("src") !== uri) picture.src = uri;
  frame.classList.toggle("empty", uri === null);
}

// drawing

function draw() {
  document.body.classList.toggle("grid", grid);
  const none = !shown.length;
  find("nothing").hidden = !none;
  find("picture").hidden = none || grid;
  find("cards").hidden = none || !grid;
  find("panel").inert = none;
  find("rest").hidden = !grid;
  find("view").textContent = grid ? "One" : "Grid";
  drawProgress();
  if (none) return closeZoom();
  if (grid) drawCards();
  else showPicture(find("picture"), shown[at]);
  if (find("zoom").open) showPicture(find("zoom"), shown[at]);
  drawPanel();
}

function drawProgress() {
  const wrong = [...answers].filter(([number, answer]) => answer !== rows[number].label).length;
  find("bar").max = rows.length;
  find("bar").value = answers.size;
  find("count").textContent = `${answers.size.toLocaleString("en")} of ${rows.length.toLocaleString("en")} reviewed, ${wrong.toLocaleString("en")} wrong`;
  find("kept").hidden = kept;
  find("finished").hidden = answers.size < rows.length;
}

function drawCards() {
  const page = listPage();
  const cards = find("cards");
  while (cards.children.length > page.length) cards.lastChild.remove();
  while (cards.children.length < page.length) cards.append(find("card").content.cloneNode(true));
  page.forEach((number, place) => {
    const card = cards.children[place];
    const current = firstOfPage() + place === at;
    showPicture(card, number);
    card.classList.toggle("current", current);
    card.setAttribute("aria-pressed", current);
    card.setAttribute("aria-label", `row ${rows[number].id}, labelled ${classes[rows[number].label].shown}, ${describe(number)}`);
    markAnswer(card, number);
    const said = card.querySelector(".said");
    said.textContent = answers.has(number) ? describe(number) : classes[rows[number].label].shown;
    if (current) card.scrollIntoView({ block: "nearest" });
  });
}

function markAnswer(element, number) {
  const given = answers.get(number);
  element.classList.toggle("right", given === rows[number].label);
  element.classList.toggle("wrong", given !== undefined && given !== rows[number].label);
}

function describe(number) {
  const given = answers.get(number);
  if (given === undefined) return "not reviewed";
  if (given === rows[number].label) return "right";
  return given === NONE ? "no class" : classes[given].shown;
}

function drawPanel() {
  const number = shown[at];
  const row = rows[number];
  const given = answers.get(number);
  find("place").textContent = `${(at + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}`;
  find("predicted").textContent = classes[row.label].shown;
  find("probability").textContent = `${(100 * row.probability).toFixed(1)}%`;
  find("row").textContent = row.id;
  find("file").textContent = row.file;
  find("file").title = row.uri;
  find("answer").textContent = describe(number);
  markAnswer(find("answer"), number);
  for (const button of document.querySelectorAll("#classes button")) {
    const own = Number(button.dataset.class);
    button.classList.toggle("label", own === row.label);
    button.setAttribute("aria-pressed", given === own);
  }
  find("right").setAttribute("aria-pressed", given === row.label);
  find("none").setAttribute("aria-pressed", given === NONE);
}

function tell(text) {
  find("message").textContent = text;
}

function zoom() {
  if (!shown.length || find("zoom").open) return closeZoom();
  find("zoom").showModal();
  showPicture(find("zoom"), shown[at]);
}

function closeZoom() {
  if (find("zoom").open) find("zoom").close();
}

// the CSV

function quote(cell) {
  return /[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
}

function makeCsv() {
  const lines = rows.map((row, number) => [...row.cells, formatAnswer(number)]);
  return [data.columns, ...lines].map((line) => line.map(quote).join(",") + "\n").join("");
}

function formatAnswer(number) {
  const given = answers.get(number);
  if (given === undefined) return "";
  if (given === NONE) return data.none;
  return given === rows[number].label && !data.named_right ? data.right : classes[given].cell;
}

function save() {
  const address = URL.createObjectURL(new Blob([makeCsv()], { type: "text/csv" }));
  const link = document.createElement("a");
  link.href = address;
  link.download = data.form;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
  unsaved = false;
  tell(`Saved ${data.form} with ${answers.size.toLocaleString("en")} answers.`);
}

function splitCsv(text) {
  const body = text.replace(/^\ufeff/, "");
  const head = body.split("\n", 1)[0];
  const count = (mark) => head.split(mark).length;
  const separator = [",", ";", "\t"].reduce((best, mark) => (count(mark) > count(best) ? mark : best));
  const lines = [];
  let line = [];
  let cell = "";
  let quoted = false;
  for (let place = 0; place < body.length; place += 1) {
    const mark = body[place];
    if (quoted) {
      if (mark !== '"') cell += mark;
      else if (body[place + 1] === '"') cell += body[(place += 1)];
      else quoted = false;
    } else if (mark === '"' && cell === "") quoted = true;
    else if (mark === separator) {
      line.push(cell);
      cell = "";
    } else if (mark === "\n") {
      lines.push([...line, cell.replace(/\r$/, "")]);
      line = [];
      cell = "";
    } else cell += mark;
  }
  if (cell !== "" || line.length) lines.push([...line, cell]);
  return quoted ? [] : lines;
}

function parseAnswer(text, number) {
  const named = classes.findIndex((one) => [text, text.trim()].some((typed) => typed === one.name || typed === one.cell));
  if (named >= 0) return named;
  if (text.trim() === data.right) return rows[number].label;
  return text.trim() === data.none ? NONE : undefined;
}

async function load(file) {
  const [head = [], ...lines] = splitCsv(await file.text());
  const columns = head.map((name) => name.trim());
  const [idAt, answerAt] = [columns.indexOf(data.columns[0]), columns.indexOf(data.columns.at(-1))];
  if (idAt < 0 || answerAt < 0) return tell(`${file.name} is not a filled ${data.form}: it has no column ${data.columns[0]} or ${data.columns.at(-1)}.`);
  const read = [];
  let unknown = 0;
  for (const line of lines) {
    const text = line[answerAt] || "";
    if (!text.trim()) continue;
    const number = numberOf.get(Number(line[idAt]));
    const value = number === undefined ? undefined : parseAnswer(text, number);
    if (value === undefined) unknown += 1;
    else read.push([number, value]);
  }
  const changed = read.filter(([number, value]) => answers.has(number) && answers.get(number) !== value).length;
  if (read.length) setAnswers(read);
  const parts = [`Read ${read.length.toLocaleString("en")} answers from ${file.name}`];
  if (changed) parts.push(`${changed} replaced other answers`);
  if (unknown) parts.push(`${unknown} lines have another row or no class of the model`);
  tell(`${parts.join("; ")}.`);
  draw();
}

// keys, buttons and files

function countColumns() {
  return grid ? getComputedStyle(find("cards")).gridTemplateColumns.split(" ").length : 1;
}

const KEYS = {
  ".": () => answer(rows[shown[at]].label),
  "?": () => answer(NONE),
  "/": () => answer(NONE),
  ",": () => find("search").focus(),
  ArrowLeft: () => move(-1),
  ArrowRight: () => move(1),
  ArrowUp: () => move(-countColumns()),
  ArrowDown: () => move(countColumns()),
  PageUp: () => move(-PER_PAGE),
  PageDown: () => move(PER_PAGE),
  Home: () => move(-rows.length),
  End: () => move(rows.length),
  Backspace: undo,
  Enter: () => switchView(),
  " ": zoom,
};

const byKey = new Map(data.buttons.slice(0, CLASS_KEYS.length).map((index, place) => [CLASS_KEYS[place], index]));

function press(event) {
  const typing = event.target.closest("input, select");
  if (event.key === "z" && (event.ctrlKey || event.metaKey) && !typing) {
    event.preventDefault();
    return undo();
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return undefined;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if ((key === "Enter" || key === " ") && event.target.closest("button:not(.card), a, summary")) return undefined;
  const index = byKey.get(key);
  if (index === undefined && !(key in KEYS)) return undefined;
  event.preventDefault();
  if (index !== undefined) return answer(index);
  return shown.length || key === "Backspace" ? KEYS[key]() : undefined;
}

function switchView() {
  grid = !grid;
  closeZoom();
  draw();
}

function chooseFound() {
  const found = classes.findIndex((one) => one.shown === find("search").value);
  if (found < 0) return;
  find("search").value = "";
  find("search").blur();
  answer(found);
}

function start() {
  for (const [place, index] of data.buttons.entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.class = index;
    const name = document.createElement("bdi");
    name.textContent = classes[index].shown;
    if (place < CLASS_KEYS.length) {
      const key = document.createElement("kbd");
      key.textContent = CLASS_KEYS[place];
      button.append(key);
    }
    button.append(name);
    button.addEventListener("click", () => answer(index));
    find("classes").append(button);
  }
  for (const [index, one] of classes.entries()) {
    find("known").append(new Option(one.shown));
    if (rows.some((row) => row.label === index)) find("label").append(new Option(one.shown, index));
  }
  find("find").hidden = data.buttons.length === classes.length;
  for (const id of ["state", "label", "order"]) find(id).addEventListener("change", filter);
  const clicks = {
    right: KEYS["."], none: KEYS["?"], back: () => move(-1), on: () => move(1), rest: answerRest, undo, save,
    view: switchView, picture: zoom, zoom: closeZoom, open: () => find("csv").click(),
  };
  for (const [id, act] of Object.entries(clicks)) find(id).addEventListener("click", act);
  find("cards").addEventListener("click", (event) => {
    const place = [...find("cards").children].indexOf(event.target.closest(".card"));
    if (place < 0) return;
    at = firstOfPage() + place;
    draw();
  });
  find("cards").addEventListener("dblclick", zoom);
  find("search").addEventListener("input", chooseFound);
  find("csv").addEventListener("change", async () => {
    for (const file of find("csv").files) await load(file);
    find("csv").value = "";
  });
  document.addEventListener("keydown", press);
  // a button that was clicked gives the keys back
  document.addEventListener("click", (event) => event.detail && event.target.closest("button")?.blur());
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", async (event) => {
    event.preventDefault();
    for (const file of event.dataTransfer.files) await load(file);
  });
  addEventListener("storage", (event) => {
    if (event.key !== data.key) return;
    readKept(); // another tab of the same page
    draw();
  });
  addEventListener("beforeunload", (event) => {
    if (!kept && unsaved) event.preventDefault();
  });
  readKept();
  filter();
  const open = shown.findIndex((number) => !answers.has(number));
  if (open > 0) at = open;
  draw();
}

start();
