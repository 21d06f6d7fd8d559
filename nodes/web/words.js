// The words of this pack in the page's language, from locales/*/main.json.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const ANYTHING = "(.+?)"; // What {} stands for in an English line,
const NUMBER = "([\\d.,]+)"; // and {n}.
const SPECIAL = /[.*+?^$()|[\]\\/]/g;

let words = {};
let lines = [];
let parts = [];

async function load() {
  const language = app.ui?.settings?.getSettingValue?.("Comfy.Locale") ?? "en";
  const all = await (await api.fetchApi("/i18n")).json();
  words = { ...all.en?.packforcing, ...all[language]?.packforcing };
  [lines, parts] = [words.said?.lines, words.said?.parts].map((texts) => Object.entries(texts ?? {}).map(asPattern));
}

function asPattern([english, own]) {
  const pattern = english.replace(SPECIAL, "\\$&").replaceAll("{}", ANYTHING).replaceAll("{n}", NUMBER);
  return { pattern: new RegExp(`^${pattern}$`), own };
}

let loaded;
// Asked for in an extension's setup: the setting is not known before. Without words the text stays English.
export const loadWords = () => (loaded ??= load().catch(() => {}));

// Replaces {key} by the word.
export const inWords = (text) => text.replace(/\{(\w+)\}/g, (_, key) => words[key] ?? key.replaceAll("_", " "));

// What the server said in English; lines without a translation stay as they are.
export const inLanguage = (text) => text.split("\n").map((line) => translated(line, lines)).join("\n");

function translated(text, patterns) {
  const plain = text.replaceAll("\u00a0", " ");
  for (const { pattern, own } of patterns) {
    const found = plain.match(pattern);
    if (found) return own.replace(/\{(\d+)\}/g, (_, number) => translated(found[number], parts));
  }
  return text;
}
