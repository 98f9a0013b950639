// One answer of the model, which grows with the chunks of its stream. No elements.

import { addFrame } from "./blocks.js";

/** Returns an answer of which nothing has come yet. Its `state` says how it ended. */
export function newAnswer() {
  return {
    state: "streaming", // then "done", "stopped" or "failed"
    text: "",
    thinking: "",
    calls: [],
    blocks: [],
    finish: null,
    figures: null,
    error: null,
    started: Date.now(),
    firstBlockMs: null,
    tokens: 0,
  };
}

/** Add a chunk to the answer. Returns "content", "draft" or "nothing", for what it has changed. */
export function addChunk(answer, chunk) {
  if (chunk.usage) answer.tokens = chunk.usage.completion_tokens;
  const choice = chunk.choices[0];
  if (choice === undefined) return "nothing";
  if (choice.finish_reason) answer.finish = choice.finish_reason;
  if (chunk.diffusion?.step !== undefined) {
    const block = addFrame(answer.blocks, chunk.diffusion);
    return block.settled ? "nothing" : "draft";
  }
  if (chunk.diffusion) answer.figures = chunk.diffusion;
  return addDelta(answer, choice.delta) ? "content" : "nothing";
}

function addDelta(answer, { content, reasoning_content: thought, tool_calls: parts }) {
  answer.text += content ?? "";
  answer.thinking += thought ?? "";
  for (const { index, id, function: called } of parts ?? []) {
    const call = (answer.calls[index] ??= { id, name: called.name, arguments: "" });
    call.arguments += called.arguments;
  }
  const added = Boolean(content || thought || parts);
  if (added) answer.firstBlockMs ??= Date.now() - answer.started;
  return added;
}

/** End the answer: "done", "stopped" by the person, or "failed" with the error's message. */
export function end(answer, state, error = null) {
  answer.state = state;
  answer.error = error;
  answer.duration_s = (Date.now() - answer.started) / 1000;
  if (answer.figures === null && answer.tokens > 0) {
    answer.figures = measured(answer); // the server sends its own only with a whole answer
  }
}

/** Returns the figures of an answer that did not end by itself. Only drafts tell about blocks. */
function measured(answer) {
  const done = finishedBlocks(answer);
  const times = {
    tokens_per_second: answer.tokens / Math.max(answer.duration_s, 0.001),
    time_to_first_block_s: answer.firstBlockMs / 1000,
  };
  if (!done.length) return times;
  const steps = done.reduce((sum, block) => sum + block.settled.length, 0);
  return { ...times, blocks: done.length, denoising_steps: steps };
}

/** Returns the block that is being made: one with a draft that is not final, or undefined. */
export function drafted(answer) {
  const block = answer.blocks.at(-1);
  return block && !block.settled ? block : undefined;
}

/** Returns the finished blocks of which there are drafts to replay. */
export function finishedBlocks(answer) {
  return answer.blocks.filter((block) => block?.settled);
}
