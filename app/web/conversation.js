// A conversation and the request that it makes. No elements.
//
// Messages are {role: "user", text, images}, {role: "assistant", answers, shown}, of whose answers
// the one with the index `shown` counts, and {role: "tool", call, text}, the result of a call.

const TITLE = 60; // characters

export const DEFAULT_OPTIONS = {
  system: "",
  temperature: "",
  maxTokens: "",
  seed: "",
  quality: "",
  thinking: false,
  tools: "",
};

/** Returns an empty conversation with the options of the one before. */
export function newConversation(options) {
  const id = crypto.getRandomValues(new Uint32Array(4)).join("-");
  return { id, used: Date.now(), options: { ...options }, messages: [] };
}

/** Returns the beginning of the first message, by which a person finds the conversation again. */
export function title(conversation) {
  const text = conversation.messages[0]?.text.trim().replace(/\s+/g, " ");
  if (!text) return conversation.messages.length ? "An image" : "New chat";
  return text.length > TITLE ? `${text.slice(0, TITLE)}…` : text;
}

export function shownAnswer(message) {
  return message.answers[message.shown];
}

/** Returns the calls of the last answer that have no result yet. */
export function openCalls(conversation) {
  const last = conversation.messages.findLastIndex((message) => message.role === "assistant");
  if (last < 0) return [];
  const results = conversation.messages.slice(last + 1);
  if (results.some((message) => message.role !== "tool")) return [];
  const answered = new Set(results.map((message) => message.call));
  return shownAnswer(conversation.messages[last]).calls.filter((call) => !answered.has(call.id));
}

/** Returns the tools that the options offer. Throws SyntaxError if they are no JSON list. */
export function tools(options) {
  if (!options.tools.trim()) return [];
  const given = JSON.parse(options.tools);
  if (!Array.isArray(given)) throw new SyntaxError("The tools must be a list.");
  // A function may be given alone or as the API has it.
  return given.map((tool) => (tool.function ? tool : { type: "function", function: tool }));
}

/** Returns the body of the request for the next answer. Throws SyntaxError as `tools` does. */
export function requestBody(conversation, { drafts }) {
  const { options } = conversation;
  const body = {
    messages: conversation.messages.flatMap(sentMessage),
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true, include_drafts: drafts },
  };
  if (options.system.trim()) body.messages.unshift({ role: "system", content: options.system });
  if (options.temperature !== "") body.temperature = Number(options.temperature);
  if (options.maxTokens !== "") body.max_completion_tokens = Number(options.maxTokens);
  if (options.seed !== "") body.seed = Number(options.seed);
  if (options.quality) body.quality = options.quality;
  if (options.thinking) body.enable_thinking = true;
  const offered = tools(options);
  if (offered.length) body.tools = offered;
  return body;
}

function sentMessage(message) {
  switch (message.role) {
    case "user":
      return [{ role: "user", content: userContent(message) }];
    case "tool":
      return [{ role: "tool", tool_call_id: message.call, content: message.text }];
    case "assistant": {
      const { text, calls } = shownAnswer(message);
      if (!text && !calls.length) return [];
      const sent = { role: "assistant", content: text };
      if (calls.length) {
        sent.tool_calls = calls.map(({ id, name, arguments: given }) => ({
          id,
          type: "function",
          function: { name, arguments: given },
        }));
      }
      return [sent];
    }
  }
}

function userContent({ text, images }) {
  if (!images.length) return text;
  const pictures = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return [...pictures, { type: "text", text }];
}
