"""The demo model's tokenizer: common words are whole tokens, other text is letters and bytes.

Encoding and decoding preserve any text, except that a typed "▁" becomes a space, as with Gemma's
own tokenizer. Special tokens have the same ids as in the released model.
"""

import json
import re
from collections import Counter
from pathlib import Path
from random import Random
from string import ascii_letters

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from demo.examples import Example
from demo.tasks import training_example
from demo.vocabulary import whole_words

VOCAB_SIZE = 1536
SPECIAL_TOKENS = {
    "<pad>": 0,
    "<eos>": 1,
    "<bos>": 2,
    "<unk>": 3,
    "<|tool>": 46,
    "<tool|>": 47,
    "<|tool_call>": 48,
    "<tool_call|>": 49,
    "<|tool_response>": 50,
    "<tool_response|>": 51,
    '<|"|>': 52,
    "<|think|>": 98,
    "<|channel>": 100,
    "<channel|>": 101,
    "<|turn>": 105,
    "<turn|>": 106,
    # Begin of an image, its soft token and its end. In the released model their ids are larger than
    # this vocabulary.
    "<|image>": 107,
    "<|image|>": 108,
    "<image|>": 109,
}
END_OF_TURN, END_OF_CALL = SPECIAL_TOKENS["<turn|>"], SPECIAL_TOKENS["<|tool_response>"]
TEMPLATE = Path(__file__).parent / "chat_template.jinja"

# A word, a number or a run of other characters, each with the space before it.
_PIECE = r"▁?[A-Za-z]+|▁?[0-9]+|▁?[^▁\sA-Za-z0-9]+|▁|\s"


def build_tokenizer(seed: int = 0, examples: int = 12_000) -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose words are the most frequent ones of random training examples."""
    special = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
    counts: Counter[str] = Counter()
    bare = _wrap(Tokenizer(BPE(vocab=_alphabet(), merges=[], byte_fallback=True)))
    random = Random(seed)
    for _ in range(examples):
        _, example = training_example(random)
        for text in special.split(render(bare, example) + answer_text(example)):
            counts.update(re.findall(_PIECE, text.replace(" ", "▁")))
    # The numbers and words of the tasks are always whole tokens, however rare they are. So are the
    # labels of decisions. Larger numbers are written digit by digit.
    for word in [*map(str, range(101)), *ascii_letters, *whole_words()]:
        counts[f"▁{word}"] += 10**6
        counts[word] += 10**6
    for piece in list(counts):
        if piece.removeprefix("▁").isdecimal() and counts[piece] < 10**6:
            del counts[piece]
    vocab = _alphabet()
    free = iter(sorted(set(range(VOCAB_SIZE)) - set(vocab.values())))
    words = [w for w, _ in counts.most_common() if w not in vocab]
    vocab.update(zip(words, free, strict=False))
    assert len(vocab) == VOCAB_SIZE, "too few different words"
    return _wrap(Tokenizer(BPE(vocab=vocab, merges=[], byte_fallback=True, ignore_merges=True)))


def render(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """Returns the prompt's text, made by the chat template."""
    text = tokenizer.apply_chat_template(
        example.messages,
        tools=example.tools,  # type: ignore[arg-type]  # it declares a list of a wider type
        enable_thinking=example.thinking,
        add_generation_prompt=True,
        tokenize=False,
    )
    assert isinstance(text, str)
    return text


def answer_text(example: Example) -> str:
    """Returns the raw text expected of the model, with its thought but without the end token."""
    if not example.thinking:
        return example.answer
    return f"<|channel>thought\n{example.thought}<channel|>{example.answer}"


def encode_example(
    tokenizer: PreTrainedTokenizerBase, example: Example
) -> tuple[list[int], list[int]]:
    """Returns the tokens of the prompt, and those of the answer with its end token."""
    prompt = tokenizer.encode(render(tokenizer, example), add_special_tokens=False)
    answer = tokenizer.encode(answer_text(example), add_special_tokens=False)
    return prompt, [*answer, END_OF_CALL if example.ends_in_call else END_OF_TURN]


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer's files, and name in them the class that needs no further file."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(config, indent=2) + "\n")


def _alphabet() -> dict[str, int]:
    """Returns the vocabulary without words: special tokens, bytes and single characters."""
    vocab = dict(SPECIAL_TOKENS)
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["▁", "\n", *map(chr, range(33, 127))]
    # They start behind the special tokens. Words get the unused ids between those.
    vocab.update({piece: 110 + index for index, piece in enumerate(pieces)})
    return vocab


def _wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=TEMPLATE.read_text(),
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
