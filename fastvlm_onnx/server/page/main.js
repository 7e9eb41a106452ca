// Connects the page's elements with the stage, the session and the source of answers.

import { Client } from "./client.js";
import { askForKey, connectDialogs, connectHistory, connectInfo, connectTheme } from "./dialogs.js";
import { byId, relabel } from "./elements.js";
import { AnswerError, PageError, inWords } from "./errors.js";
import { connectIntake } from "./intake.js";
import { connectKeyboard } from "./keyboard.js";
import { OptionFields } from "./options.js";
import { connectPen } from "./pen.js";
import { PromptMenu } from "./prompts.js";
import { Session } from "./session.js";
import { Stage } from "./stage.js";
import { TurnList } from "./turns.js";
import { WakeLock } from "./wake_lock.js";

const PHASES = { idle: "Idle", prompt: "Processing Prompt", response: "Generating Response" };
const SHUTTER = {
  ask: "Ask about this picture",
  live: "Back to the live picture",
  stop: "Stop the answer",
  pause: "Pause",
  play: "Go on",
};
const EMPTY = "Answers appear here. Take, choose or draw a picture, then ask about it.";

const client = new Client(document.baseURI);
const stage = new Stage(byId("video"), byId("pad"));
const session = new Session(client, stage);
const prompts = new PromptMenu({
  select: byId("prompts"),
  fields: byId("customize"),
  prompt: byId("custom-prompt"),
  suffix: byId("custom-suffix"),
});
const turnList = new TurnList(byId("turns"));
const wakeLock = new WakeLock();
const question = byId("question");
let retry = null;
let isWatching = false;

// --- what is asked -------------------------------------------------------------------------------

async function ask(text) {
  retry = () => ask(text);
  hideNotice();
  await session.ask(text);
}

async function run() {
  retry = run;
  hideNotice();
  await session.run(() => prompts.text);
}

async function startCamera(start) {
  try {
    hideNotice();
    await start();
    stage.goLive();
  } catch (error) {
    showNotice(error);
  }
}

async function openFile(file) {
  try {
    hideNotice();
    await stage.open(file);
  } catch (error) {
    showNotice(error);
  }
}

async function prepare() {
  if (await session.prepare()) byId("prepared").textContent = "Picture prepared";
}

function shutterAction() {
  if (session.mode === "continuous") return session.isRunning ? "pause" : "play";
  if (session.phase !== "idle") return "stop";
  return stage.isFrozen ? "live" : "ask";
}

function pressShutter() {
  switch (shutterAction()) {
    case "ask":
      return ask(prompts.text);
    case "live":
      return stage.goLive();
    case "stop":
      return session.stop();
    case "pause":
      return session.pause();
    default:
      return run();
  }
}

// --- what is shown -------------------------------------------------------------------------------

function showStage() {
  const { source, camera } = stage;
  const still = byId("still");
  byId("view").dataset.source = source;
  byId("sources").querySelector(`[value="${source}"]`).checked = true;
  byId("video").hidden = !stage.isLive;
  byId("pad").hidden = source !== "drawing";
  if (stage.shown && still.picture !== stage.shown) stage.shown.showIn(still);
  still.picture = stage.shown;
  still.hidden = stage.shown === null;
  byId("camera-off").hidden = source !== "camera" || stage.hasPicture;
  byId("no-file").hidden = source !== "file" || stage.hasPicture;
  byId("no-drawing").hidden = source !== "drawing" || stage.hasPicture;

  const hasChoice = source === "camera" && camera.isOn && camera.devices.length > 1;
  byId("camera-choice").hidden = byId("other-camera").hidden = !hasChoice;
  const options = camera.devices.map(
    ({ label, deviceId }, i) => new Option(label || `Camera ${i + 1}`, deviceId),
  );
  byId("cameras").replaceChildren(...options);
  byId("cameras").value = camera.deviceId;
  byId("other-file").hidden = source !== "file" || !stage.hasPicture;
  byId("colors").hidden = byId("pen-buttons").hidden = source !== "drawing";
  byId("undo").disabled = byId("clear").disabled = stage.drawing.isEmpty;
  byId("prepared").textContent = "";
  showSession();
}

function showSession() {
  const { mode, phase, turns } = session;
  byId("modes").querySelector(`[value="${mode}"]`).checked = true;
  byId("phase").textContent = PHASES[phase];
  byId("capsule").dataset.phase = phase;
  // In a series the phase changes too often to be read aloud.
  byId("capsule").setAttribute("aria-live", mode === "single" ? "polite" : "off");
  const ttft = turns.findLast((turn) => turn.ttft !== null)?.ttft;
  byId("ttft").hidden = ttft === undefined;
  byId("ttft").textContent = `TTFT ${Math.round(ttft)} ms`;

  const action = shutterAction();
  const shutter = byId("shutter");
  shutter.dataset.action = action;
  relabel(shutter, SHUTTER[action], action);
  shutter.disabled = client.model === null || !stage.hasPicture;
  byId("ask-prompt").disabled = shutter.disabled;
  byId("send").disabled = shutter.disabled || question.value.trim() === "";
  turnList.show(turns, mode === "single");
  wakeLock.want(stage.isLive || session.isRunning);
}

function announce({ detail: turn }) {
  const announcer = byId("announcer");
  // In a series an answer that says the same again is not read again.
  if (session.mode === "single") announcer.textContent = "";
  if (turn.ended !== "stopped") announcer.textContent = turn.answer;
}

function showNotice(error) {
  byId("notice-text").textContent = inWords(error);
  const action = byId("notice-action");
  const wantsKey = error.kind === "key";
  action.hidden = !wantsKey && !(error instanceof AnswerError && retry);
  action.textContent = wantsKey ? "Enter the key" : "Try again";
  action.onclick = async () => {
    if (wantsKey && !(await askForKey(client, error.message))) return;
    hideNotice();
    if (client.model === null) await watchServer();
    retry?.();
  };
  byId("notice").hidden = false;
  if (error.kind === "unreachable" || error.kind === "loading") watchServer();
  // An error that the page does not know is a fault of the page.
  if (inWords(error).startsWith("Something failed")) console.error(error);
}

function hideNotice() {
  byId("notice").hidden = true;
}

/** Show the state of the server until it is ready. */
async function watchServer() {
  if (isWatching) return;
  isWatching = true;
  client.model = null;
  showSession();
  try {
    for await (const { state, message, short } of client.loadStatus()) {
      const texts = { ready: message, loading: "Loading the model…", unreachable: "No server" };
      showLoadStatus(state, short ?? texts[state] ?? "Refused", message);
      if (state === "failed") showNotice(new PageError(message));
    }
  } catch (error) {
    showLoadStatus("failed", "Key needed", error.message);
    const isGiven = await askForKey(client, error.message);
    isWatching = false;
    if (isGiven) watchServer();
    else showNotice(error);
    return;
  }
  isWatching = false;
  if (client.model === null) return; // it cannot be opened, and the status says why
  prompts.suggest(client.model);
  stage.maxSide = Math.max(1024, client.model.image_size ?? 0);
  showSession();
}

function showLoadStatus(state, text, message) {
  const chip = byId("load-status");
  chip.dataset.state = state;
  if (chip.textContent !== text) chip.textContent = text;
  chip.title = message;
}

// --- connections ---------------------------------------------------------------------------------

function connectStage() {
  stage.addEventListener("change", showStage);
  stage.addEventListener("settled", () => {
    if (session.mode === "single" && (stage.source === "file" || question.value)) prepare();
  });
  stage.camera.addEventListener("lost", () =>
    showNotice(new DOMException("", "OverconstrainedError")),
  );
  byId("sources").addEventListener("change", (event) => {
    if (session.mode === "single") session.stop();
    stage.choose(event.target.value);
    if (stage.source === "camera") startIfAllowed();
  });
  byId("start-camera").addEventListener("click", () => startCamera(() => stage.camera.start()));
  byId("cameras").addEventListener("change", ({ target: { value } }) => {
    startCamera(() => stage.camera.start(value));
  });
  byId("other-camera").addEventListener("click", () => startCamera(() => stage.camera.startNext()));
  connectIntake(openFile);
}

function connectSession() {
  session.addEventListener("change", showSession);
  session.addEventListener("text", showSession);
  session.addEventListener("ended", announce);
  session.addEventListener("error", ({ detail }) => showNotice(detail));
  byId("modes").addEventListener("change", ({ target }) => {
    session.setMode(target.value);
    if (target.value === "continuous") run();
  });
  byId("shutter").addEventListener("click", pressShutter);
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (byId("send").disabled) return;
    ask(question.value.trim());
    question.value = "";
  });
  byId("ask-prompt").addEventListener("click", () => ask(prompts.text));
  question.addEventListener("input", () => {
    showSession();
    if (question.value) prepare();
  });
  question.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("composer").requestSubmit();
  });
  byId("remembers").addEventListener("change", ({ target }) => {
    session.remembers = target.checked;
  });
}

async function startIfAllowed() {
  if (await stage.camera.isAllowed()) await startCamera(() => stage.camera.start());
}

byId("turns").dataset.empty = EMPTY;
byId("notice-close").addEventListener("click", hideNotice);
byId("change-key").addEventListener("click", async () => {
  byId("info").close();
  if (await askForKey(client, "The key for this server.")) watchServer();
});
new OptionFields(
  {
    details: byId("options"),
    note: byId("options-note"),
    maxTokens: byId("max-tokens"),
    temperature: byId("temperature"),
    form: byId("form"),
    schemaFields: byId("schema-fields"),
    schema: byId("schema"),
    schemaError: byId("schema-error"),
  },
  (options) => (session.options = options),
);
byId("privacy").textContent = client.privacy;
byId("change-key").hidden = !client.hasKeys;
byId("form-of-answer").hidden = !client.formsAnswers;
connectTheme();
connectDialogs();
connectHistory(session);
connectInfo(client);
connectPen(stage.drawing);
connectStage();
connectSession();
connectKeyboard({ pressShutter, stop: () => session.stop() });
showStage();
watchServer();
startIfAllowed();
