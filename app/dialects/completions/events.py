"""A raw completion as OpenAI's JSON, whole or as chunks."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from app.answer.generation import Choice, Delta, Finished
from app.chat_format.events import TextDelta
from app.dialects.completions.schema import CompletionRequest
from app.dialects.openai_answer import OpenAIAnswer
from engine.messages import TokenLogprobs


@dataclass(frozen=True)
class CompletionAnswer(OpenAIAnswer):
    object = "text_completion"
    chunk_object = "text_completion"
    endpoint = "/v1/completions"

    body: CompletionRequest
    # For each choice, the offset in its text at which its next token begins.
    offsets: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def _whole(self, choice: Choice) -> dict[str, Any]:
        text = self._echo(choice.end.choice) + choice.text
        shown = self._choice(choice.end.choice, text, choice.end.reason, choice.logprobs)
        return {**shown, **self._prompt_tokens(choice.end.choice)}

    def _openings(self) -> Iterator[dict[str, Any]]:
        if self.body.echo or self.body.return_token_ids:
            for index in range(self.request.choices):
                yield {**self._choice(index, self._echo(index)), **self._prompt_tokens(index)}

    def _added(self, delta: Delta) -> dict[str, Any]:
        assert isinstance(delta.event, TextDelta)  # a raw completion is all text
        return self._choice(delta.choice, delta.event.text, None, delta.logprobs)

    def _nothing(self, choice: int) -> dict[str, Any]:
        return self._choice(choice, "")

    def _ended(self, end: Finished) -> dict[str, Any]:
        return self._choice(end.choice, "", end.reason, end.logprobs)

    def _prompt_tokens(self, index: int) -> dict[str, Any]:
        """Returns the field with the token ids of a choice's prompt if the request asks for it."""
        prompt = self.request.prompts[index // self.request.n]
        return {"prompt_token_ids": prompt.tokens} if self.body.return_token_ids else {}

    def _echo(self, index: int) -> str:
        """Returns the prompt as text if the request sets `echo`, else an empty text."""
        if not self.body.echo:
            return ""
        prompt = self.body.prompts[index // self.request.n]
        if isinstance(prompt, str):
            return prompt
        return self.services.prompts.vocabulary.decode(prompt)

    def _choice(
        self,
        index: int,
        text: str,
        reason: str | None = None,
        logprobs: Sequence[TokenLogprobs] = (),
    ) -> dict[str, Any]:
        shown = None
        if self.body.logprobs is not None:
            tokens = [self._token(each.token) for each in logprobs]
            ends = accumulate(map(len, tokens), initial=self.offsets[index])
            *starts, self.offsets[index] = ends
            shown = {
                "tokens": tokens,
                "token_logprobs": [each.logprob for each in logprobs],
                "top_logprobs": [
                    {self._token(token): logprob for token, logprob in each.top}
                    for each in logprobs
                ],
                "text_offset": starts,
            }
        return {"index": index, "text": text, "finish_reason": reason, "logprobs": shown}

    def _token(self, token: int) -> str:
        return self.services.prompts.vocabulary.token_bytes(token).decode(errors="replace")
