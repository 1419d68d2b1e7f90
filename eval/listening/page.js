// The listener's page: consent, sound check, trials one after the other, thanks. The server decides what comes next.

import { Clips, Player } from "./player.js";

const byId = (id) => document.getElementById(id);
const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

let test;
let token = location.hash.slice(1);
let clips = new Clips(token);
let players = [];
let onKey = () => false;

// ---------------------------------------------------------------------------------------------- server

class Refusal extends Error {
  constructor(status, reason) {
    super(reason);
    this.status = status;
  }
}

async function ask(path, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const options = { method: body === undefined ? "GET" : "POST", headers, body: body && JSON.stringify(body) };
  const response = await fetch(`api/${path}`, options);
  if (response.ok) return response.json();
  const told = await response.json().catch(() => ({}));
  throw new Refusal(response.status, told.detail ?? "The server has a problem. Please try again later.");
}

/** Does `work` for a button; a fault is shown, and the button can be pressed again. */
async function attempt(button, work) {
  button.disabled = true;
  notice("");
  try {
    await work();
  } catch (error) {
    if (error.status === 401) return stop(error.message);
    if (error.status === 409) return show(await ask("state")); // answered already, perhaps in another tab
    notice(error instanceof Refusal ? error.message : "This could not be saved. Please check your connection and try again: nothing is lost.");
    button.disabled = false;
  }
}

// ------------------------------------------------------------------------------------------------ page

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

function say(text) {
  byId("status").textContent = text;
}

/** Shows a template; returns its parts by name. */
function stage(id, place) {
  players.forEach((player) => player.release());
  players = [];
  onKey = () => false;
  const content = byId(id).content.cloneNode(true);
  const parts = { heading: content.querySelector("h1") };
  for (const part of content.querySelectorAll("[data-part]")) parts[part.dataset.part] = part;
  byId("stage").replaceChildren(content);
  byId("place").textContent = place ?? test?.name ?? "Listening test";
  document.title = place ? `${place} · ${test.name}` : byId("place").textContent;
  byId("keys").hidden = true;
  say("");
  scrollTo(0, 0);
  return parts;
}

function keys(list) {
  const shown = list.flatMap(([key, use]) => [element("kbd", {}, key), ` ${use}  `]);
  byId("key-list").replaceChildren(...shown);
  byId("keys").hidden = false;
}

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

function stop(reason) {
  byId("footer").hidden = true;
  byId("progress").hidden = true;
  const parts = stage("stopped");
  parts.reason.textContent = reason;
  parts.heading.focus();
}

// --------------------------------------------------------------------------------------------- players

const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

/** A clip with its button; `name` is shown and read out. */
function playerRow(clip, name, spoken) {
  const player = new Player(clip, clips);
  const row = byId("player").content.firstElementChild.cloneNode(true);
  const button = row.querySelector("button");
  row.querySelector(".name").textContent = name;
  const update = () => {
    row.classList.toggle("playing", player.playing);
    row.classList.toggle("heard", player.heard);
    row.style.setProperty("--at", `${(100 * player.position) / player.seconds}%`);
    row.querySelector(".time").textContent = `${clock(player.position)} / ${clock(Math.ceil(player.seconds))}`;
    button.setAttribute("aria-label", `${player.playing ? "Pause" : "Play"} ${spoken}${player.heard ? ", heard" : ""}`);
  };
  player.addEventListener("change", update);
  player.addEventListener("failed", () => notice("The clip could not be loaded. Please check your connection and press play again."));
  button.addEventListener("click", () => toggle(player));
  players.push(player);
  update();
  return { row, player };
}

/** Plays a clip, alone. In a side-by-side trial it goes on where the other was. */
function toggle(player, together = player.together) {
  notice("");
  if (player.playing) return player.pause();
  const other = players.find((each) => each.playing);
  players.forEach((each) => each.pause());
  return player.play(together && other ? other.position : undefined);
}

// ------------------------------------------------------------------------------------------- questions

/** A group of choices; `onChoice(value)` is told each. Returned with it: `lock(whether)` and `choose(number)`. */
function choices(question, labels, values, onChoice, digits = true) {
  const name = `q${Math.random()}`;
  const inputs = values.map((value) => {
    const input = element("input", { type: "radio", name });
    input.addEventListener("change", () => onChoice(value));
    return input;
  });
  const options = inputs.map((input, k) => {
    const digit = element("span", { class: "digit", "aria-hidden": true }, digits ? String(k + 1) : "");
    return element("label", { class: "choice" }, input, digit, element("span", {}, labels[k]));
  });
  const group = element("fieldset", {}, element("legend", {}, question), element("div", { class: "choices" }, ...options));
  const lock = (whether) => (group.disabled = whether);
  const choose = (k) => {
    if (group.disabled || !inputs[k]) return false;
    inputs[k].focus();
    inputs[k].click();
    return true;
  };
  return { group, lock, choose };
}

/** A slider for a clip's value from 0 to 100, untouched at first. */
function slider(spoken, labels, onValue) {
  const output = element("output", {}, "–");
  const input = element("input", { type: "range", min: 0, max: 100, step: 1, value: 50, "aria-label": spoken, "aria-valuetext": "not rated yet" });
  const row = element("div", { class: "slider-row untouched" }, input, output);
  const text = () => `${input.value}, ${labels[Math.min(4, Math.floor(input.value / 20))]}`;
  input.addEventListener("input", () => {
    row.classList.remove("untouched");
    output.textContent = input.value;
    input.setAttribute("aria-valuetext", text());
    onValue(Number(input.value));
  });
  return row;
}

// ---------------------------------------------------------------------------------------------- stages

function show(state) {
  byId("footer").hidden = state.stage === "consent";
  byId("code").textContent = state.listener;
  const { done, total } = state.progress ?? { done: 0, total: 1 };
  byId("progress").hidden = state.stage !== "trial";
  byId("progress").style.setProperty("--done", `${(100 * done) / total}%`);
  byId("progress").setAttribute("aria-valuemax", total);
  byId("progress").setAttribute("aria-valuenow", done);
  byId("progress").setAttribute("aria-valuetext", `${done} of ${total} done`);
  ({ consent: welcome, check, trial, done: thanks })[state.stage](state);
}

function welcome() {
  const parts = stage("welcome");
  parts.heading.textContent = test.name;
  byId("place").textContent = "Welcome";
  parts.introduction.textContent = test.introduction;
  parts.minutes.textContent = `It takes about ${test.minutes} ${test.minutes === 1 ? "minute" : "minutes"}.`;
  parts.storage.append(...test.storage.map((text) => element("p", {}, text)));
  parts.begin.addEventListener("click", () =>
    attempt(parts.begin, async () => {
      if (!token) {
        ({ token } = await ask("enrol", {}));
        clips = new Clips(token);
        history.replaceState(null, "", `#${token}`);
      }
      show(await ask("consent", {}));
    }),
  );
}

function check(state) {
  const parts = stage("check");
  parts.volume.append(playerRow(state.volume, "", "the chord").row);
  const answers = state.headphones.map(() => undefined);
  state.headphones.forEach((clip, k) => {
    const { row } = playerRow(clip, String(k + 1), `tones ${k + 1}`);
    const labels = ["First", "Second", "Third"];
    const { group } = choices("", labels, [1, 2, 3], (value) => {
      answers[k] = value;
      parts.go.disabled = answers.includes(undefined);
    }, false);
    group.setAttribute("aria-label", `Tones ${k + 1}: which is the quietest?`);
    group.querySelector("legend").remove();
    parts.headphones.append(element("div", {}, row, group));
  });
  const finish = (button, given) => attempt(button, async () => show(await ask("check", { answers: given })));
  parts.go.addEventListener("click", () => finish(parts.go, answers));
  parts.skip.addEventListener("click", () => finish(parts.skip, []));
  parts.heading.focus();
}

function trial({ trial: shown, progress, ahead }) {
  const place = shown.practice ? "Practice" : `${progress.done + 1} of ${progress.total}`;
  const parts = stage("trial", place);
  parts.heading.textContent = headingOf(shown);
  parts.note.hidden = !shown.practice;
  parts.note.textContent = "This one is for practice: your answer does not count.";
  parts.prompt.hidden = !shown.prompt;
  parts.prompt.textContent = shown.prompt ?? "";
  const needed = [...(shown.reference ? [shown.reference] : []), ...shown.clips].map((clip) => clip.id);
  clips.keep([...needed, ...ahead]);
  needed.forEach((id) => clips.url(id).catch(() => {})); // a fault is told when it is played

  const values = new Map();
  const rated = test.method === "mushra" ? shown.clips : shown.clips.slice(0, 1);
  const wanted = rated.length * shown.questions.length;
  const set = (clip, attribute) => (value) => {
    values.set(`${clip.id} ${attribute}`, { clip: clip.id, attribute, value });
    parts.next.disabled = values.size < wanted;
  };
  const groups = test.method === "mushra" ? sliders(shown, parts, set) : chosen(shown, parts, set);
  const update = () => unlock(groups, parts, shown.clips.length > 1);
  players.forEach((player) => player.addEventListener("change", update));
  update();
  parts.next.addEventListener("click", () =>
    attempt(parts.next, async () => {
      players.forEach((player) => player.pause());
      const listened = Object.fromEntries(players.map((player) => [player.id, player.listened]));
      show(await ask("ratings", { trial: shown.id, answers: [...values.values()], listened_s: listened }));
    }),
  );
  listenForKeys(groups, parts, shown);
  ahead.forEach((id) => clips.url(id).catch(() => {}));
  parts.heading.focus();
}

function headingOf(shown) {
  if (shown.reference) return "Compare with the reference";
  return shown.clips.length > 1 ? "Listen to both clips" : "Listen to the clip";
}

/** A clip, or two, and choices for each question. */
function chosen(shown, parts, set) {
  const single = shown.clips.length === 1;
  shown.clips.forEach((clip, k) => {
    const { row } = playerRow(clip, single ? "" : LETTERS[k], single ? "the clip" : `clip ${LETTERS[k]}`);
    parts.players.append(row);
  });
  const groups = shown.questions.map(({ question, labels, values, attribute }) =>
    choices(question, labels, values, set(shown.clips[0], attribute)),
  );
  parts.questions.append(...groups.map(({ group }) => group));
  return groups;
}

/** The reference, and each clip with a slider. */
function sliders(shown, parts, set) {
  const { question, labels, attribute } = shown.questions[0];
  parts.players.append(playerRow(shown.reference, "Reference", "the reference").row);
  const scale = element("div", { class: "scale", "aria-hidden": true }, ...labels.map((label) => element("span", {}, label)));
  const group = element("fieldset", { class: "sliders" });
  group.append(element("legend", {}, question), scale);
  const under = [];
  shown.clips.forEach((clip, k) => {
    const { row } = playerRow(clip, LETTERS[k], `clip ${LETTERS[k]}`);
    const line = slider(`Clip ${LETTERS[k]}, from 0 (${labels[0]}) to 100 (${labels[4]})`, labels, set(clip, attribute));
    under.push(line.querySelector("input"));
    group.append(row, line);
  });
  players.forEach((player) => (player.together = true));
  parts.questions.append(group);
  // Not the whole group, whose buttons must work before.
  return [{ lock: (whether) => under.forEach((input) => (input.disabled = whether)), choose: () => false }];
}

function unlock(groups, parts, several) {
  const heard = players.every((player) => player.heard);
  groups.forEach((group) => group.lock(!heard));
  const left = players.filter((player) => !player.heard).length;
  const wait = several ? `Listen to every clip to its end, then answer. ${left} to go.` : "Listen to the end, then answer.";
  const hint = heard ? "You can answer now, and play again as often as you like." : wait;
  if (parts.hint.textContent === hint) return;
  parts.hint.textContent = hint;
  if (heard) say("You can answer now.");
}

function thanks(state) {
  const parts = stage("done");
  parts.code.textContent = state.listener;
  byId("footer").hidden = true;
  parts.heading.focus();
}

// ------------------------------------------------------------------------------------------------ keys

function listenForKeys(groups, parts, shown) {
  const letters = players.length > 1;
  const names = shown.reference ? `R${LETTERS.slice(0, shown.clips.length)}` : LETTERS.slice(0, shown.clips.length);
  let current = players[0];
  let group = 0;
  onKey = (key) => {
    if (key === " ") return toggle(current), true;
    if (key === "Enter") return parts.next.disabled ? false : (parts.next.click(), true);
    const named = letters ? names.indexOf(key.toUpperCase()) : -1;
    if (named >= 0) return toggle((current = players[named])), true;
    if (!/^[1-9]$/.test(key) || !groups[group].choose(Number(key) - 1)) return false;
    group = Math.min(group + 1, groups.length - 1); // each digit answers the next question
    return true;
  };
  const digits = shown.questions[0].values.length;
  keys([
    ["Space", "play or pause"],
    ...(letters ? [[[...names].join(" "), "play one"]] : []),
    ...(digits ? [[`1–${digits}`, "answer"]] : [["← →", "move a slider"]]),
    ["Enter", "next"],
  ]);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || !byId("shortcuts").checked) return;
  // What has the focus keeps its own keys.
  const { target, key } = event;
  if (target.closest("button, a") && (key === " " || key === "Enter")) return;
  if (target.matches("input") && key === " ") return;
  if (onKey(key)) event.preventDefault();
});

byId("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    say("Copied.");
    byId("copy").textContent = "Copied";
  } catch {
    notice(`Your link is ${location.href}`);
  }
});

addEventListener("hashchange", () => location.reload());

// ----------------------------------------------------------------------------------------------- start

try {
  test = await ask("test");
  if (token) show(await ask("state"));
  else if (test.open) welcome();
  else stop("This test is by invitation. Please use the whole link that you were given.");
} catch (error) {
  stop(error instanceof Refusal ? error.message : "The test cannot be reached. Please check your connection and reload the page.");
}
