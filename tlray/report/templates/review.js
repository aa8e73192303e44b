const CLASS_KEYS = "1234567890abcdefghijklmnopqrstuvwxyz";
const PER_PAGE = 48;

// the rows in view

let grid = false;
let shown = [];
let at = 0; // place in `shown`
let ended = false; // whether the last row in view was answered

const STATES = {
  all: () => true,
  open: (number) => !answers.has(number),
  done: (number) => answers.has(number),
  wrong: (number) => answers.has(number) && answers.get(number) !== rows[number].label,
  none: (number) => answers.get(number) === NONE,
};

function list() {
  const state = STATES[find("state").value];
  const label = find("label").value;
  shown = rows.map((_, number) => number).filter((number) => state(number) && (label === "" || rows[number].label === Number(label)));
  if (find("order").value === "doubt") shown.sort((one, other) => rows[one].probability - rows[other].probability);
}

function filter() {
  list();
  at = 0;
  ended = false;
  draw();
}

function go(place) {
  at = Math.min(Math.max(place, 0), shown.length - 1);
  ended = false;
  draw();
}

function undo() {
  const step = steps.pop();
  if (!step) return tell("There is nothing to undo.");
  // what another tab has answered since stays
  write(step.before.filter(([number]) => answers.get(number) === step.after.get(number)));
  if (!shown.includes(step.number)) {
    find("state").value = "all";
    find("label").value = "";
    list();
  }
  at = Math.max(shown.indexOf(step.number), 0);
  ended = false;
  tell(step.before.length === 1 ? `Undone: row ${rows[step.before[0][0]].id}.` : `Undone: ${plural(step.before.length, "row")}.`);
  return draw();
}

function move(by) {
  if (shown.length) go(at + by);
}

function answer(value) {
  if (!shown.length) return undefined;
  if (ended) return tell("This view ends here; go to a row to change its answer.");
  const again = answers.has(shown[at]);
  setAnswers([[shown[at], value]]);
  tell("");
  const later = shown.findIndex((number, place) => place > at && !answers.has(number));
  const open = later >= 0 ? later : shown.findIndex((number) => !answers.has(number));
  if (open >= 0) return go(open);
  if (again && at < shown.length - 1) return go(at + 1);
  ended = true;
  const left = rows.length - answers.size;
  tell(left ? `This view ends here; ${plural(left, "row")} outside of it ${left === 1 ? "is" : "are"} not reviewed.` : "All rows are reviewed: save the CSV.");
  return draw();
}

function answerRest() {
  const open = listPage().filter((number) => !answers.has(number));
  const seen = open.filter((number) => findPicture(number) !== null);
  if (!seen.length) return tell(open.length ? "The rows that are left have no picture." : "Every row of this page is reviewed.");
  setAnswers(seen.map((number) => [number, rows[number].label]));
  const unseen = open.length - seen.length;
  const left = unseen ? `; ${plural(unseen, "row")} without a picture ${unseen === 1 ? "was" : "were"} left` : "";
  tell(`Marked ${plural(seen.length, "row")} right${left}.`);
  const next = firstOfPage() + PER_PAGE;
  return next < shown.length && !unseen ? go(next) : draw();
}

function turnPage(by) {
  if (shown.length) go(firstOfPage() + by * PER_PAGE);
}

function plural(count, what) {
  return `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
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
  for (const id of ["first", "classes", "find", "rest"]) find(id).inert = none;
  for (const id of ["rest", "earlier", "later"]) find(id).hidden = !grid;
  find("view").textContent = grid ? "One" : "Grid";
  drawProgress();
  if (none) return closeZoom();
  if (grid) drawCards();
  else showPicture(find("picture"), shown[at]);
  if (find("zoom").open) drawZoom();
  drawPanel();
}

function drawProgress() {
  const wrong = [...answers].filter(([number, answer]) => answer !== rows[number].label).length;
  find("bar").max = rows.length;
  find("bar").value = answers.size;
  find("count").textContent = `${answers.size.toLocaleString("en")} of ${rows.length.toLocaleString("en")} reviewed, ${wrong.toLocaleString("en")} wrong`;
  find("kept").hidden = kept;
  find("next").hidden = answers.size < rows.length && !everSaved;
}

function drawCards() {
  const page = listPage();
  const cards = find("cards");
  const focused = cards.contains(document.activeElement);
  while (cards.children.length > page.length) cards.lastChild.remove();
  while (cards.children.length < page.length) cards.append(find("card").content.cloneNode(true));
  page.forEach((number, place) => {
    const card = cards.children[place];
    const current = firstOfPage() + place === at;
    showPicture(card, number);
    card.classList.toggle("current", current);
    card.setAttribute("aria-current", current);
    card.tabIndex = current ? 0 : -1;
    if (current && focused) card.focus({ preventScroll: true });
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
  find("probability").textContent = formatShare(row.probability);
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

function formatShare(share) {
  const text = `${(100 * share).toFixed(1)}%`;
  return share < 1 && text === "100.0%" ? ">99.9%" : text;
}

function drawZoom() {
  const number = shown[at];
  showPicture(find("zoom"), number);
  find("zoomed").textContent = `${classes[rows[number].label].shown}? ${answers.has(number) ? describe(number) : ""}`;
}

function tell(text) {
  find("message").textContent = text;
}

function zoom() {
  if (!shown.length || find("zoom").open) return closeZoom();
  find("zoom").showModal();
  drawZoom();
}

function closeZoom() {
  if (find("zoom").open) find("zoom").close();
}

// files

function save() {
  const address = URL.createObjectURL(new Blob([makeCsv()], { type: "text/csv" }));
  const link = document.createElement("a");
  link.href = address;
  link.download = data.form;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
  saved = everSaved = true;
  tell(`The browser saves ${data.form} with ${plural(answers.size, "answer")}.`);
  draw();
}

async function load(file) {
  let found;
  try {
    found = readAnswers(await file.text());
  } catch (error) {
    return `${file.name} cannot be read: ${error.message}.`;
  }
  const changes = found.read.filter(([number, value]) => answers.get(number) !== value);
  const replaced = changes.filter(([number]) => answers.has(number)).length;
  if (changes.length) setAnswers(changes);
  const parts = [`${file.name}: ${plural(found.read.length, "answer")}`];
  if (replaced) parts.push(`${replaced} replaced others`);
  if (found.skipped) parts.push(`${plural(found.skipped, "line")} skipped: no row of this sample, or no class`);
  return `${parts.join("; ")}.`;
}

async function loadAll(files) {
  const told = [];
  for (const file of [...files]) told.push(await load(file));
  ended = false;
  if (told.length) tell(told.join(" "));
  draw();
}

// keys and buttons

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
  PageUp: () => turnPage(-1),
  PageDown: () => turnPage(1),
  Home: () => move(-rows.length),
  End: () => move(rows.length),
  Backspace: undo,
  Enter: () => switchView(),
  " ": zoom,
};

const REPEATED = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "PageUp", "PageDown"]);

const byKey = new Map(); // classes named by one letter or digit have that key
const others = data.buttons.filter((index) => {
  const own = classes[index].name.toLowerCase();
  const fits = own.length === 1 && CLASS_KEYS.includes(own) && !byKey.has(own);
  if (fits) byKey.set(own, index);
  return !fits;
});
const free = [...CLASS_KEYS].filter((key) => !byKey.has(key));
others.slice(0, free.length).forEach((index, place) => byKey.set(free[place], index));

function nameKey(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (byKey.has(key) || key in KEYS || event.shiftKey) return key;
  const place = /^(?:Digit|Numpad|Key)(\w)$/.exec(event.code); // of another script or layout
  return place ? place[1].toLowerCase() : event.code === "Period" ? "." : key;
}

function press(event) {
  const typing = event.target.closest("input, select");
  if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && !typing) {
    event.preventDefault();
    return undo();
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return undefined;
  const key = nameKey(event);
  if ((key === "Enter" || key === " ") && event.target.closest("button:not(.card), a, summary")) return undefined;
  if (!byKey.has(key) && !(key in KEYS)) return undefined;
  event.preventDefault();
  if (event.repeat && !REPEATED.has(key)) return undefined;
  if (byKey.has(key)) return answer(byKey.get(key));
  return shown.length || key === "Backspace" ? KEYS[key]() : undefined;
}

function switchView() {
  grid = !grid;
  closeZoom();
  draw();
}

function chooseTyped() {
  const found = classes.findIndex((one) => one.shown === find("search").value);
  if (found < 0) return tell("No class has this name.");
  find("search").value = "";
  find("search").blur();
  return answer(found);
}

function search(event) {
  if (event.isComposing) return;
  if (event.key === "Enter") chooseTyped();
  if (event.key === "Escape") find("search").blur();
}

let pointed = false; // whether the last event came from a pointer, which gives the keys back to the page

function start() {
  const keys = new Map([...byKey].map(([key, index]) => [index, key]));
  for (const index of data.buttons) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.class = index;
    const label = document.createElement("bdi");
    label.textContent = classes[index].shown;
    const key = document.createElement("kbd");
    key.textContent = keys.get(index);
    button.append(key, label);
    button.addEventListener("click", () => answer(index));
    find("classes").append(button);
  }
  for (const [index, one] of classes.entries()) {
    find("known").append(new Option("", one.shown));
    if (rows.some((row) => row.label === index)) find("label").append(new Option(one.shown, index));
  }
  find("find").hidden = find("typed").hidden = find("typed").nextElementSibling.hidden = data.buttons.length === classes.length;
  for (const id of ["state", "label", "order"]) {
    find(id).addEventListener("change", () => {
      if (pointed) find(id).blur();
      filter();
    });
  }
  const clicks = {
    right: KEYS["."], none: KEYS["?"], back: () => move(-1), on: () => move(1), rest: answerRest, undo, save,
    earlier: () => turnPage(-1), later: () => turnPage(1), view: switchView, picture: zoom, zoom: closeZoom, open: () => find("csv").click(),
  };
  for (const [id, act] of Object.entries(clicks)) find(id).addEventListener("click", act);
  find("cards").addEventListener("click", (event) => {
    const place = [...find("cards").children].indexOf(event.target.closest(".card"));
    if (place >= 0) go(firstOfPage() + place);
  });
  find("cards").addEventListener("focusin", (event) => {
    const place = [...find("cards").children].indexOf(event.target.closest(".card"));
    if (place >= 0 && firstOfPage() + place !== at) go(firstOfPage() + place);
  });
  find("cards").addEventListener("dblclick", zoom);
  find("search").addEventListener("keydown", search);
  find("search").addEventListener("input", (event) => {
    if (!(event instanceof InputEvent) || event.inputType === "insertReplacementText") chooseTyped(); // one of the list
  });
  find("csv").addEventListener("change", async () => {
    await loadAll(find("csv").files);
    find("csv").value = "";
  });
  document.addEventListener("keydown", () => { pointed = false; }, true);
  document.addEventListener("pointerdown", () => { pointed = true; }, true);
  document.addEventListener("keydown", press);
  document.addEventListener("click", (event) => event.detail && event.target.closest("button:not(.card), summary")?.blur());
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    loadAll(event.dataTransfer.files);
  });
  addEventListener("storage", (event) => {
    if (event.key !== data.key || !kept) return;
    readKept(); // another tab of the same page
    draw();
  });
  addEventListener("beforeunload", (event) => {
    if (kept || saved) return;
    event.preventDefault();
    event.returnValue = true; // older browsers ask for this
  });
  new ResizeObserver(([entry]) => {
    document.documentElement.style.setProperty("--top", `${entry.target.offsetHeight}px`);
  }).observe(document.querySelector(".top"));
  readKept();
  filter();
  const open = shown.findIndex((number) => !answers.has(number));
  if (open > 0) go(open);
}

start();
