"""The miniature's tokenizer: a byte-level BPE with single digits, and the chat template."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END, PAD, USER, ASSISTANT, SYSTEM = "<|end|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"
VOCABULARY = 2560
CONTEXT = 512

# `generation` marks the assistant's tokens for `apply_chat_template(return_assistant_tokens_mask=True)`
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>"
    "{% generation %}{{ ' ' + message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% elif message['role'] == 'system' %}<|system|>{{ ' ' + message['content'] }}"
    "{% else %}<|user|>{{ ' ' + message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# words with the space before them, single digits, runs of anything else; written in byte-level characters (Ġ: space)
_PIECES = Regex("'s|Ġ?[0-9]|Ġ?[A-Za-z]+|Ġ?[^A-Za-z0-9Ġ]+|Ġ+")


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer fitted to texts.

    A space is put before a text that has none, so that a name is the same token at the start of a reply and within a
    sentence; decoding takes it off again.

    Args:
        texts: what the base model will read.

    Returns:
        The tokenizer, with its special tokens and chat template.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False),
            pre_tokenizers.Split(_PIECES, behavior="isolated"),
        ]
    )
    bpe.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(content=" ", left=1, right=0)])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
