// The denoising steps of a block, as an answer's drafts show them, and what they mean. No elements.
//
// A block is {steps, settled, total}. Each of its steps is {step, tokens, accepted, entropy}: the
// canvas after that denoising step, as the server sent it. Drafts that were dropped are missing.
// `settled` says for every denoising step how many tokens were final after it. It comes with the
// finished block.

import { several } from "./dom.js";

/** Add a frame of a stream to an answer's blocks. Returns the block. */
export function addFrame(blocks, frame) {
  const block = (blocks[frame.block] ??= { steps: [], settled: null });
  const { step, tokens, accepted, entropy } = frame;
  if (step <= (block.steps.at(-1)?.step ?? 0)) block.steps = []; // it was begun again
  block.steps.push({ step, tokens, accepted, entropy });
  if (frame.settled) block.settled = frame.settled;
  return block;
}

/** Returns which tokens of a step differ from those of the step before. */
export function changes(step, before) {
  return step.tokens.map((token, index) => before !== undefined && token !== before.tokens[index]);
}

/** Returns how many tokens were accepted, new and changed, in words. */
export function stepFigures(block, index) {
  const step = block.steps[index];
  const accepted = step.accepted.filter(Boolean).length;
  const changed = changes(step, block.steps[index - 1]).filter(Boolean).length;
  return (
    `${accepted} of ${several(step.tokens.length, "token")} accepted` +
    (index > 0 ? `, ${changed} changed` : "") +
    `, mean entropy ${step.entropy.toPrecision(2)} nats`
  );
}

/**
 * Returns for each token of a finished block the number of the step that gave it its final text.
 * If the drafts in between were dropped, it is the first step that is known to show it.
 */
export function settledAt(block) {
  const last = block.steps.at(-1).tokens;
  return last.map((token, index) => {
    let from = block.steps.length - 1;
    while (from > 0 && block.steps[from - 1].tokens[index] === token) from -= 1;
    return block.steps[from].step;
  });
}

/** Returns whether a step is in the later half of a finished block's steps. */
export function isLate(step, block) {
  return step > Math.max(1, Math.floor(block.settled.length / 2));
}

/** Returns the indices of the tokens that became final late. */
function lateTokens(block) {
  return settledAt(block).flatMap((step, index) => (isLate(step, block) ? [index] : []));
}

/** Returns the sentences that say what a finished block's replay shows and why it took so long. */
export function explanation(block, number) {
  const { settled } = block;
  const steps = settled.length;
  const tokens = settled.at(-1);
  const first = settled[0];
  const needed = settled.findIndex((count) => count === tokens) + 1;
  const intro = `Block ${number} has ${several(tokens, "token")} and took ${several(steps, "step")}.`;
  if (tokens === 0) return `${intro} It ends the answer and adds no text.`;
  if (steps === 1) return `${intro} The model was sure of all of them at once.`;
  const begin =
    first === tokens
      ? "After the first step every token was already the final one."
      : first === 0
        ? "After the first step no token was final yet."
        : `After the first step ${first} of them ${first === 1 ? "was" : "were"} already final.`;
  return `${intro} ${begin} ${reason(block, steps, tokens, first, needed)}`;
}

function reason(block, steps, tokens, first, needed) {
  if (first === tokens) {
    const more = steps === 2 ? "One more step" : `${steps - 1} more steps`;
    return `${more} confirmed it: a block ends when nothing changes and the model is sure.`;
  }
  const waited = steps - needed;
  const end =
    waited > 0
      ? `Nothing changed in the last ${waited === 1 ? "step" : `${waited} steps`}: ` +
        "a block ends when nothing changes and the model is sure."
      : "The last step still changed it: the block ended at the limit of steps, at a quality that " +
        "ends blocks early, or because it was made to fit the form that was asked for.";
  const late = lateTokens(block);
  if (needed <= 2 || late.length === 0 || late.length > tokens / 2) {
    return `The others followed by step ${needed}. ${end}`;
  }
  const [what, them] =
    late.length === 1 ? ["is one token", "it"] : [`are ${late.length} tokens`, "them"];
  return (
    `What took long ${what} (${quoted(block, late)}), which became final only by step ` +
    `${needed}: the model could decide ${them} only when the tokens around ${them} stood. ${end}`
  );
}

/** Returns the first few of these tokens as a person reads them. */
function quoted(block, indices) {
  const { tokens } = block.steps.at(-1);
  const texts = [...new Set(indices.map((index) => tokens[index].trim()).filter(Boolean))];
  const few = texts.slice(0, 4).map((text) => `“${text}”`);
  return (few.join(", ") || "white space") + (texts.length > few.length ? ", …" : "");
}
