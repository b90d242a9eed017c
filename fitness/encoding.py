"""Text -> token ids, by lm-eval's own conventions for Hugging Face models, so that scores agree with it.

Conventions of lm_eval.models.huggingface.HFLM: special tokens as the tokenizer adds them, except where the
text already opens with the beginning-of-sequence token; trailing spaces of a context belong to its
continuation; what is too long loses tokens at its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fitness.requests import Continuation, Generation, Rolling, Tokens

_DEFAULT_NEW_TOKENS = 256  # lm-eval's, for a task that sets none
_LENGTH_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_NO_EFFECT_WHEN_GREEDY = {"do_sample", "temperature", "top_p", "top_k", "min_p", "use_cache"}


class Encoder:
    """Turns lm-eval's requests into token ids for one tokenizer and one context length.

    Every method raises ValueError, with the reason, for a request that this model cannot be asked.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        first = tokenizer.bos_token_id
        self._prefix_id: int | None = tokenizer.eos_token_id if first is None else first
        self._prefix_text = "" if self._prefix_id is None else tokenizer.decode([self._prefix_id])

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer brings a chat template."""
        return bool(self.tokenizer.chat_template)

    def chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Renders messages with the chat template; a template without a system role gets none."""
        from jinja2.exceptions import TemplateError

        def render(kept: list[dict[str, str]]) -> str:
            text = self.tokenizer.apply_chat_template(
                kept,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
            return str(text)

        try:
            return render(messages)
        except TemplateError:
            return render([message for message in messages if message["role"] != "system"])

    def continuation(self, context: str, target: str) -> Continuation:
        """The continuation ``target`` of ``context``; an empty context becomes the model's first token."""
        if context:
            prefix, scored = self._split(context, target)
        else:
            scored = self._encode(target, special_tokens=False)
            prefix = (self._first_id(),)
            if scored[:1] == prefix:
                scored = scored[1:]
        if not scored:
            raise ValueError(f"the continuation {target!r} adds no token to its context")
        return self._fitted(prefix, scored)

    def rolling(self, text: str) -> Rolling:
        """All of ``text``, in windows as long as the model allows; each window sees only itself."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows = get_rolling_token_windows(
            token_list=list(self._encode(text)),
            prefix_token=self._first_id(),
            max_seq_len=self.max_tokens,
            context_len=1,
        )
        pairs = [make_disjoint_window(window) for window in windows]
        return Rolling(windows=tuple(self._fitted(tuple(seen), tuple(scored)) for seen, scored in pairs))

    def generation(self, context: str, options: Mapping[str, Any]) -> Generation:
        """The text after ``context``. ``options`` are a task's ``generation_kwargs``; decoding is greedy."""
        until, max_new_tokens = _greedy_options(options)
        room = self.max_tokens - max_new_tokens
        if room <= 0:
            raise ValueError(
                f"it generates up to {max_new_tokens} tokens, but the model's context has {self.max_tokens}; "
                "lower max_gen_toks in the task's generation_kwargs"
            )
        opening = self.tokenizer.bos_token
        prompt = self._encode(context, special_tokens=not (opening and context.startswith(opening)))
        if not prompt:
            raise ValueError("its prompt has no tokens")
        return Generation(prompt=prompt[-room:], max_new_tokens=max_new_tokens, stops=until)

    def _split(self, context: str, target: str) -> tuple[Tokens, Tokens]:
        bare = context.rstrip()
        target = context[len(bare) :] + target
        prefix = self._encode(bare)
        return prefix, self._encode(bare + target)[len(prefix) :]

    def _encode(self, text: str, special_tokens: bool | None = None) -> Tokens:
        if special_tokens is None:
            special_tokens = not (self._prefix_text and text.startswith(self._prefix_text))
        return tuple(self.tokenizer.encode(text, add_special_tokens=special_tokens))

    def _first_id(self) -> int:
        if self._prefix_id is None:
            raise ValueError("it needs a first token, but the tokenizer has neither bos_token nor eos_token")
        return self._prefix_id

    def _fitted(self, prefix: Tokens, target: Tokens) -> Continuation:
        if len(target) > self.max_tokens:
            raise ValueError(
                f"its continuation has {len(target)} tokens; the model's context {self.max_tokens}"
            )
        # The last token of the target is predicted but never read: one token more than the context fits.
        room = self.max_tokens + 1 - len(target)
        return Continuation(prefix=(prefix or (self._first_id(),))[-room:], target=target)


def _greedy_options(options: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    """``(stop strings, tokens to generate at most)`` of a task's generation options.

    Raises:
        ValueError: the options ask for something other than greedy decoding.
    """
    known = {"until", *_LENGTH_KEYS, *_NO_EFFECT_WHEN_GREEDY}
    unknown = {
        key: value for key, value in options.items() if key not in known and (key, value) != ("num_beams", 1)
    }
    if unknown:
        raise ValueError(f"generation_kwargs {unknown} are not supported; remove them from the task")
    temperature = float(options.get("temperature") or 0.0)
    if options.get("do_sample", temperature > 0) and temperature > 0:
        raise ValueError("it samples its answers; set do_sample: false in the task's generation_kwargs")
    until = options.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    lengths = [int(options[key]) for key in _LENGTH_KEYS if options.get(key) is not None]
    return tuple(stop for stop in stops if stop), lengths[0] if lengths else _DEFAULT_NEW_TOKENS
