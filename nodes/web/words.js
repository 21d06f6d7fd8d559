// The words of this pack in the page's language, from locales/*/main.json.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

let words = {};

async function load() {
  const language = app.ui?.settings?.getSettingValue?.("Comfy.Locale") ?? "en";
  const all = await (await api.fetchApi("/i18n")).json();
  words = { ...all.en?.packforcing, ...all[language]?.packforcing };
}

let loaded;
// Asked for in an extension's setup: the setting is not known before. Without words the text stays English.
export const loadWords = () => (loaded ??= load().catch(() => {}));

// Replaces {key} by the word.
export const inWords = (text) => text.replace(/\{(\w+)\}/g, (_, key) => words[key] ?? key.replaceAll("_", " "));
