// The page: what is open, what runs, and what a person can do with it.

import { ApiError, chat, forgetKey, hasKey, servedModel, serverState } from "./api.js";
import { addChunk, end, newAnswer } from "./answer.js";
import { Composer } from "./composer.js";
import {
  DEFAULT_OPTIONS,
  newConversation,
  openCalls,
  requestBody,
  shownAnswer,
} from "./conversation.js";
import { askKey, askOptions } from "./dialogs.js";
import { announce, button, h } from "./dom.js";
import { showMessages } from "./messages_view.js";
import { nextTheme, prefer, preference, theme } from "./preferences.js";
import { showSidebar } from "./sidebar.js";
import * as store from "./store.js";

const READY_POLL_MS = 15_000;
const LOADING_POLL_MS = 2_000;
const NEAR_END = 120; // pixels from the end of the messages, within which the page follows them
const STATES = { ready: "ready", loading: "loading the model", unreachable: "not reachable" };

const messages = document.getElementById("messages");
const sidebar = document.getElementById("sidebar");
const running = new Map(); // by conversation id: what stops its answer, and the answer's view

let conversations = [];
let conversation = newConversation(preference("options", DEFAULT_OPTIONS));
let model = null;
let state = "loading";
let keyAsked = false;

const composer = new Composer(document.getElementById("composer"), { onsend: send, onstop: stop });

// What a person asks for

function send(text, images) {
  conversation.messages.push({ role: "user", text, images });
  answerNext();
}

function stop() {
  running.get(conversation.id)?.controller.abort();
}

function edit(index, text) {
  const { images } = conversation.messages[index];
  stop();
  conversation.messages.splice(index);
  send(text, images);
}

/** Make another answer to the same messages. It takes the place of one that failed. */
function again() {
  const message = conversation.messages.at(-1);
  const failed = shownAnswer(message).state === "failed";
  message.answers.splice(
    failed ? message.shown : message.answers.length,
    Number(failed),
    newAnswer(),
  );
  message.shown = failed ? message.shown : message.answers.length - 1;
  generate(message);
}

function choose(message, index) {
  message.shown = index;
  keepAndShow();
}

function result(call, text) {
  conversation.messages.push({ role: "tool", call: call.id, text });
  if (openCalls(conversation).length) keepAndShow();
  else answerNext();
}

function open(other) {
  conversation = other;
  document.body.classList.remove("with-sidebar");
  show();
  composer.focus();
}

async function remove(other) {
  if (!confirm("Delete this chat from this browser?")) return;
  running.get(other.id)?.controller.abort();
  await store.remove(other.id);
  conversations = conversations.filter((each) => each !== other);
  if (other === conversation) open(newConversation(conversation.options));
  else show();
}

async function removeAll() {
  if (!confirm("Delete all chats from this browser?")) return;
  for (const { controller } of running.values()) controller.abort();
  await store.removeAll();
  conversations = [];
  open(newConversation(conversation.options));
}

async function changeOptions() {
  const options = await askOptions(conversation.options, model);
  if (options === null) return;
  conversation.options = options;
  prefer("options", options);
  if (conversations.includes(conversation)) await keep(conversation);
}

// Answers

function answerNext() {
  const message = { role: "assistant", answers: [newAnswer()], shown: 0 };
  conversation.messages.push(message);
  generate(message);
}

/** Run the request for the shown answer of the last message, and show the answer as it grows. */
async function generate(message) {
  const mine = conversation;
  const answer = shownAnswer(message);
  const run = { controller: new AbortController(), view: null };
  running.set(mine.id, run);
  if (!conversations.includes(mine)) conversations.unshift(mine);
  mine.used = Date.now();
  keepAndShow();
  messages.scrollTo({ top: messages.scrollHeight });
  try {
    await read(mine, answer, run);
    end(answer, "done");
  } catch (error) {
    if (error.name === "AbortError") end(answer, "stopped");
    else if (error instanceof ApiError || error instanceof SyntaxError)
      end(answer, "failed", error.message);
    else throw error;
  } finally {
    // An edited message may have begun another answer already.
    if (running.get(mine.id) === run) running.delete(mine.id);
  }
  if (!conversations.includes(mine)) return; // it was deleted
  following(() => {
    run.view?.showEnd();
    if (mine === conversation) show();
  });
  await keep(mine);
}

async function read(mine, answer, run) {
  const before = { ...mine, messages: mine.messages.slice(0, -1) };
  const body = requestBody(before, { drafts: preference("drafts", true) });
  for await (const chunk of withKey(() => chat(body, run.controller.signal))) {
    const text = answer.text;
    switch (addChunk(answer, chunk)) {
      case "content":
        keep(mine);
        following(() => run.view?.showContent());
        if (mine === conversation && answer.text !== text) announce(answer.text.slice(text.length));
        break;
      case "draft":
        if (preference("drafts", true)) following(() => run.view?.showDraft());
        break;
    }
  }
}

/** Yields what `begin` does. If the server refuses it for the lack of a key, a person is asked. */
async function* withKey(begin) {
  while (true) {
    try {
      yield* begin();
      return;
    } catch (error) {
      if (error.status !== 401 || !(await askKey(error.message))) throw error;
    }
  }
}

// What is shown

function keep(kept) {
  return store.keep(kept).catch(cannotKeep);
}

/** Tell that this browser stores no chats, or has no room for more. The page works all the same. */
function cannotKeep(error) {
  composer.hint = `This browser can't keep the chats: ${error.message}`;
  return [];
}

function keepAndShow() {
  keep(conversation);
  show();
}

/** Change what is shown. If the end of the messages was in view, it is again. */
function following(change) {
  const follows = messages.scrollHeight - messages.scrollTop - messages.clientHeight < NEAR_END;
  change();
  if (follows) messages.scrollTo({ top: messages.scrollHeight });
}

function show() {
  const run = running.get(conversation.id);
  const view = showMessages(messages, conversation, model, { send, edit, again, choose, result });
  if (run) run.view = view;
  composer.busy = run !== undefined;
  showSidebar(sidebar, conversations, conversation, {
    onopen: open,
    onnew: () => open(newConversation(conversation.options)),
    onremove: remove,
    onremoveall: removeAll,
    onforget:
      hasKey() &&
      (() => {
        forgetKey();
        show();
      }),
    onclose: () => document.body.classList.remove("with-sidebar"),
  });
}

function showHead() {
  const focused = document.activeElement.id;
  const drafts = preference("drafts", true);
  const shownTheme = theme() || "system";
  const themeIcon = { system: "half", light: "sun", dark: "moon" }[shownTheme];
  document.title = model ? `${model.id} – Easel` : "Easel";
  document.getElementById("head").replaceChildren(
    button(
      "menu",
      "Show the chats",
      () => {
        document.body.classList.add("with-sidebar");
        sidebar.querySelector("button").focus();
      },
      { id: "open-sidebar" },
    ),
    h(
      "p",
      { class: "model" },
      h("span", { class: `dot ${state}`, "aria-hidden": "true" }),
      h("strong", {}, model?.id ?? "Easel"),
      h("span", { class: "state", role: "status" }, STATES[state]),
    ),
    button(
      "eye",
      "Drafts",
      () => {
        prefer("drafts", !drafts);
        showHead();
      },
      {
        shown: true,
        "aria-pressed": String(drafts),
        id: "drafts",
        title: "Show each block while it is being made",
      },
    ),
    button(
      themeIcon,
      `Theme: ${shownTheme}. Change it`,
      () => {
        nextTheme();
        showHead();
      },
      { id: "theme" },
    ),
    button("settings", "Options", changeOptions, { id: "options" }),
  );
  if (focused) document.getElementById(focused)?.focus();
}

// The server's state

async function watchServer() {
  while (true) {
    const now = document.hidden ? state : await serverState();
    if (now !== state || model === null) {
      state = now;
      if (state !== "unreachable") await describeModel();
      showHead();
      if (!conversation.messages.length) show();
    }
    await new Promise((resolve) =>
      setTimeout(resolve, state === "ready" ? READY_POLL_MS : LOADING_POLL_MS),
    );
  }
}

async function describeModel() {
  try {
    model = await servedModel();
    composer.takesImages = model.input_modalities.includes("image");
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 401 && !keyAsked) {
      keyAsked = true; // whoever closes the dialog is asked again only when they send a message
      if (await askKey(error.message)) await describeModel();
    }
  }
}

// The start

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog")) return;
  if (document.body.classList.contains("with-sidebar"))
    document.body.classList.remove("with-sidebar");
  else stop();
});

conversations = await store.conversations().catch(cannotKeep);
for (const answer of conversations.flatMap(({ messages: kept }) =>
  kept.flatMap((each) => each.answers ?? []),
)) {
  if (answer.state === "streaming")
    end(answer, "failed", "The page was left before this answer ended.");
}
conversation = conversations[0] ?? conversation;
showHead();
show();
composer.focus();
watchServer();
