"use strict";

// Rows are numbered as drawn. An answer is the index of a class, or NONE; rows without an answer have no entry.
const NONE = -1;

const data = JSON.parse(document.getElementById("data").textContent);
const { rows, classes } = data;
const find = (id) => document.getElementById(id);
const numberOf = new Map(rows.map((row, number) => [row.id, number]));

// answers, kept in the browser from the first one on

const answers = new Map();
const steps = []; // to undo: the answers before and after each step
let kept = true; // whether the browser stores answers
let saved = true; // whether a CSV holds all answers
let everSaved = false;

function readStored() {
  try {
    const stored = JSON.parse(localStorage.getItem(data.key) || "{}");
    return Object.entries(stored).filter(([id, given]) => {
      return numberOf.has(Number(id)) && Number.isInteger(given) && given >= NONE && given < classes.length;
    });
  } catch {
    return [];
  }
}

function readKept() {
  answers.clear();
  for (const [id, given] of readStored()) answers.set(numberOf.get(Number(id)), given);
}

function keep(numbers) {
  saved = false;
  try {
    const stored = new Map(readStored()); // with those of another tab
    for (const number of numbers) {
      if (answers.has(number)) stored.set(String(rows[number].id), answers.get(number));
      else stored.delete(String(rows[number].id));
    }
    localStorage.setItem(data.key, JSON.stringify(Object.fromEntries(stored)));
    kept = true;
  } catch {
    kept = false;
  }
}

function answered() {
  return [...answers].map(([number, given]) => [rows[number].id, given]);
}

function setAnswers(changes) {
  const before = changes.map(([number]) => [number, answers.get(number)]);
  steps.push({ number: shown[at], before, after: new Map(changes) });
  write(changes);
}

function write(changes) {
  for (const [number, given] of changes) {
    if (given === undefined) answers.delete(number);
    else answers.set(number, given);
  }
  keep(changes.map(([number]) => number));
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

function splitCsv(text) {
  const body = text.replace(/^\ufeff/, "").replace(/\r\n?/g, "\n");
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
      lines.push([...line, cell]);
      line = [];
      cell = "";
    } else cell += mark;
  }
  if (cell !== "" || line.length) lines.push([...line, cell]);
  if (quoted) throw new Error("its quotation marks do not close");
  return lines;
}

// class names and their cells differ when spaces around them are left out, or no sample is drawn
const byName = new Map(classes.flatMap((one, index) => [one.name, one.cell].map((typed) => [typed.trim(), index])));

function parseRow(cell = "") {
  const whole = /^\s*(\d+)(?:\.0+)?\s*$/.exec(cell);
  return whole ? numberOf.get(Number(whole[1])) : undefined;
}

function parseAnswer(text, number) {
  const typed = text.trim();
  if (byName.has(typed)) return byName.get(typed);
  if (typed === data.right) return rows[number].label;
  return typed === data.none ? NONE : undefined;
}

function readAnswers(text) {
  const [head = [], ...lines] = splitCsv(text);
  const columns = head.map((column) => column.trim());
  const [id, given] = [data.columns[0], data.columns[data.columns.length - 1]];
  const [idAt, givenAt] = [columns.indexOf(id), columns.indexOf(given)];
  if (idAt < 0 || givenAt < 0) throw new Error(`it has no column ${idAt < 0 ? id : given}`);
  const read = [];
  let skipped = 0;
  for (const line of lines) {
    const typed = line[givenAt] || "";
    if (!typed.trim()) continue;
    const number = parseRow(line[idAt]);
    const value = number === undefined ? undefined : parseAnswer(typed, number);
    if (value === undefined) skipped += 1;
    else read.push([number, value]);
  }
  return { read, skipped };
}
