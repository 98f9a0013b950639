"""Log-probabilities in the form that OpenAI's chat and Responses APIs share."""

from collections.abc import Sequence
from typing import Any

from app.prompting.vocabulary import Vocabulary
from engine.messages import TokenLogprobs


def token_logprobs(
    vocabulary: Vocabulary, logprobs: Sequence[TokenLogprobs]
) -> list[dict[str, Any]]:
    """Returns an entry for each token, which also lists the likeliest tokens at its position."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = vocabulary.token_bytes(token)
        text = raw.decode(errors="replace")
        return {"token": text, "logprob": logprob, "bytes": list(raw)}

    return [
        {**entry(each.token, each.logprob), "top_logprobs": [entry(*pair) for pair in each.top]}
        for each in logprobs
    ]
