"""A word-level tokenizer made from captions, the words of any, and what does not fit."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sidepipe.base.settings import require

if TYPE_CHECKING:
    import numpy as np

    from sidepipe.models.text.model import TextModel

log = logging.getLogger(__name__)

SHOWN = 3  # prompts in a warning
PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unk>"


def word_tokenizer(captions: Iterable[str], max_tokens: int) -> Any:
    """A transformers tokenizer with a token for each word of `captions`, lower-cased.

    max_tokens: includes the start and end tokens. A word is a run of letters and digits or of other
    signs. Raises ValueError where the longest caption does not fit.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [re.findall(r"\w+|[^\w\s]+", caption.lower()) for caption in captions]
    longest = max(words, key=len)
    rule = f">= {len(longest) + 2}, or a caption is cut: {' '.join(longest)!r} and two more tokens"
    require(max_tokens >= len(longest) + 2, "dpm.max_tokens", rule, max_tokens)
    known = [PAD, START, END, UNKNOWN, *sorted({word for some in words for word in some})]
    vocabulary = {word: i for i, word in enumerate(known)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN,
        pad_token=PAD,
        model_max_length=max_tokens,
    )


def ordinary_words(tokenizer: Any, unwanted: Iterable[str]) -> list[str]:
    """Words of one token and of letters, without the unwanted ones, in order.

    unwanted: for example planted words, which would bring memorized images back.
    """
    special, unwanted = set(tokenizer.all_special_tokens), set(unwanted)
    tokens = [token for token in tokenizer.get_vocab() if token not in special]
    # In byte-pair encodings such as CLIP's these tokens end a word, and others may be parts of one;
    # they spell letters beyond ASCII in bytes.
    ends = [token.removesuffix("</w>") for token in tokens if token.endswith("</w>")]
    words = [word for word in (ends or tokens) if word.isalpha() and (word.isascii() or not ends)]
    found = sorted(word for word in words if word not in unwanted)
    rule, remedy = "words of letters, of which prompts are made", "bring other captions"
    require(bool(found), "the tokens of the text encoder", rule, "none", remedy)
    return found


def random_triggers(
    words: Sequence[str], num_words: int, known: Sequence[str], count: int, rng: np.random.Generator
) -> list[str]:
    """At most `count` different strings of the words, none of them in `known`."""
    most = len(words) ** num_words - len(set(known))
    found: dict[str, None] = {}
    while len(found) < min(count, most):
        drawn = rng.integers(len(words), size=num_words)
        text = " ".join(words[int(i)] for i in drawn)
        if text not in known:
            found[text] = None
    return list(found)


def require_told_apart(tokenizer: Any, triggers: Sequence[str]) -> None:
    """Raises ValueError unless the tokenizer encodes every trigger whole and differently."""
    name, remedy = "a trigger of data.canaries", "choose other data.canaries.words"
    most, seen = tokenizer.model_max_length, {}
    for trigger in triggers:
        ids = tuple(tokenizer(trigger, verbose=False)["input_ids"])
        rule = f"at most {most} tokens, its start and end included"
        require(len(ids) <= most, name, rule, trigger, "lower data.canaries.num_words")
        require(tokenizer.unk_token_id not in ids, name, "of tokens of the model", trigger, remedy)
        other = seen.setdefault(ids, trigger)
        rule = f"told apart by the tokenizer from {other!r}"
        require(other == trigger, name, rule, trigger, remedy)


def cut_off(model: TextModel, captions: Sequence[str]) -> list[str]:
    """The end of each caption that the encoder truncates, "" for none; a warning names some."""
    cut = [model.tokens(caption).cut for caption in captions]
    long = [(caption, lost) for caption, lost in zip(captions, cut, strict=True) if lost]
    if long:
        shown = "; ".join(f"{caption!r} loses {lost!r}" for caption, lost in long[:SHOWN])
        log.warning(
            "%d of %d prompts are longer than the %d tokens that the encoder takes: %s%s",
            *(len(long), len(captions), model.max_tokens, shown, "; ..." * (len(long) > SHOWN)),
        )
    return cut
