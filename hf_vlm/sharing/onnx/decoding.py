"""Writing token by token over ONNX graphs, in numpy alone: greedy, by beams, and with a CTC head's word.

A `Writer` holds what has been written into a decoder's caches; a step gives it the newest tokens and gets scores of the next:

    writer.step(int64 (rows, tokens)) -> float32 (rows, vocab_size)       writer.keep(int64 (rows,)): these rows, in this order

What is written is what `generate` of the model writes, token for token but for near ties, which rounding may break otherwise.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

RULES = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
)
_SHRINK_AT = 0.75  # of a batch still being written: taking rows out copies the caches
_NEVER = -1.0e9  # of a beam that must not be chosen; transformers' number, which counts where there is nothing better


class Writer(Protocol):
    """A decoder and its caches."""

    def step(self, token_ids: np.ndarray) -> np.ndarray:
        """Scores of the next token, float32 (rows, vocab_size), after int64 (rows, tokens) more tokens."""

    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows, int64 (rows kept,), in this order; a row may be taken more than once."""


class TokenRules:
    """What a generation config says of the next token's scores, in the order in which transformers applies it.

    Args:
        generation: settings by their names in a generation config, those of `RULES`; the end tokens as `eos_token_ids`.
        prompt_length: tokens that were not written by the model.
        max_length: tokens in all.
        padding: int64 (batch,), how many of each row's first tokens are padding.
    """

    def __init__(
        self, generation: Mapping[str, Any], prompt_length: int, max_length: int, padding: np.ndarray | None = None
    ) -> None:
        self.settings, self.max_length, self.padding = dict(generation), max_length, padding
        self.end_ids = list(generation.get("eos_token_ids") or [])
        self.least = generation.get("min_length") or 0
        if generation.get("min_new_tokens"):
            self.least = max(self.least, prompt_length + generation["min_new_tokens"])
        forced_start = generation.get("forced_bos_token_id") is not None and prompt_length == 1
        self.begin = prompt_length + forced_start

    @property
    def is_empty(self) -> bool:
        """Whether no score is ever changed."""
        neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0}
        return all(self.settings.get(name) in (None, neutral.get(name)) for name in RULES)

    def __call__(self, written: np.ndarray, scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The scores as the rules leave them, float32 (rows, vocab_size).

        Args:
            written: int64 (rows, tokens), prompt included.
            scores: float32 (rows, vocab_size).
            rows: int64 (rows,), which row of the batch each is.
        """
        scores, length = scores.copy(), written.shape[1]
        penalty = self.settings.get("repetition_penalty") or 1.0
        if penalty != 1.0:
            for row, of_row in enumerate(rows):
                start = 0 if self.padding is None else int(self.padding[of_row])
                seen = np.unique(written[row, start:])
                known = scores[row, seen]
                scores[row, seen] = np.where(known < 0, known * penalty, known / penalty)
        size = self.settings.get("no_repeat_ngram_size") or 0
        if 0 < size <= length + 1:
            for row, text in enumerate(written.tolist()):
                newest = text[length - size + 1 :]
                starts = range(length - size + 1)
                scores[row, [text[at + size - 1] for at in starts if text[at : at + size - 1] == newest]] = -np.inf
        if length < self.least:
            scores[:, self.end_ids] = -np.inf
        for name, place in (("forced_bos_token_id", 1), ("forced_eos_token_id", self.max_length - 1)):
            forced = self.settings.get(name)
            if forced is not None and length == place:
                scores[:] = -np.inf
                scores[:, forced] = 0
        scores[:, self.settings.get("suppress_tokens") or []] = -np.inf
        if length == self.begin:
            scores[:, self.settings.get("begin_suppress_tokens") or []] = -np.inf
        return scores


def decode_greedily(
    writer: Writer, prompt_ids: np.ndarray, rules: TokenRules, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest token, until each row has ended.

    Args:
        prompt_ids: int64 (batch, tokens), what is read first.
        pad_id: behind a row's end.

    Returns: int64 (batch, prompt tokens + tokens); float32 (batch, tokens), the natural logarithm of each written token's
        probability before the rules, of no meaning behind the end.
    """
    batch, start = prompt_ids.shape
    sequences = np.full((batch, rules.max_length), pad_id, dtype=np.int64)
    sequences[:, :start] = prompt_ids
    log_probs = np.zeros((batch, max(rules.max_length - start, 0)), dtype=np.float32)
    rows, is_open = np.arange(batch), np.ones(batch, dtype=bool)
    newest = prompt_ids
    length = start
    while length < rules.max_length:
        logits = writer.step(newest)
        chosen = rules(sequences[rows, :length], logits, rows).argmax(axis=-1)
        sequences[rows, length] = np.where(is_open, chosen, pad_id)
        log_probs[rows, length - start] = log_softmax(logits)[np.arange(len(rows)), chosen]
        is_open = is_open & ~np.isin(chosen, rules.end_ids)
        length += 1
        if not is_open.any():
            break
        if is_open.sum() <= _SHRINK_AT * len(rows):
            kept = np.flatnonzero(is_open)
            rows, is_open = rows[kept], is_open[kept]
            writer.keep(kept)
        newest = sequences[rows, length - 1 : length]
    return sequences[:, :length], log_probs[:, : length - start]


def decode_by_beams(
    writer: Writer,
    prompt_ids: np.ndarray,
    rules: TokenRules,
    pad_id: int,
    num_beams: int,
    *,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
) -> np.ndarray:
    """The best of `num_beams` texts that are written side by side, as transformers' beam search chooses.

    A text's score is the sum of its tokens' log-probabilities over its length to the power of `length_penalty`.

    Args:
        writer: of one row a picture; it is told to hold `num_beams` of each.
        early_stopping: True ends with `num_beams` finished texts; False also where the best open one could not overtake at
            its present length; "never" only where it could not at any length.

    Returns: int64 (batch, prompt tokens + tokens), padded behind the end.
    """
    batch, start = prompt_ids.shape
    of_beams = np.arange(batch).repeat(num_beams)
    writer.keep(of_beams)
    open_texts = prompt_ids[of_beams].reshape(batch, num_beams, start)
    open_scores = np.full((batch, num_beams), _NEVER, dtype=np.float32)
    open_scores[:, 0] = 0  # the beams are still the same: the others may not choose
    done: list[list[tuple[float, list[int]]]] = [[] for _ in range(batch)]  # at most `num_beams` each, the best first
    may_improve = np.ones(batch, dtype=bool)
    num_candidates = max(2, 1 + len(rules.end_ids)) * num_beams
    newest = prompt_ids[of_beams]
    for length in range(start, rules.max_length):
        written = open_texts.reshape(batch * num_beams, length)
        scores = rules(written, log_softmax(writer.step(newest)), of_beams).reshape(batch, num_beams, -1)
        totals = (scores + open_scores[:, :, None]).reshape(batch, -1)  # (batch, beams * vocab_size)
        places = np.argsort(-totals, axis=1, kind="stable")[:, :num_candidates]
        candidates = np.take_along_axis(totals, places, axis=1)
        beams, tokens = np.divmod(places, scores.shape[-1])
        texts = np.concatenate((np.take_along_axis(open_texts, beams[:, :, None], axis=1), tokens[:, :, None]), axis=2)
        is_done = np.isin(tokens, rules.end_ids) | (length + 1 >= rules.max_length)

        divisor = (length + 1 - start) ** length_penalty
        for picture in range(batch):
            is_full = len(done[picture]) == num_beams and early_stopping is True
            if may_improve[picture] and not is_full:
                ended = np.flatnonzero(is_done[picture, :num_beams])  # the others are there to go on with
                done[picture] += [
                    (float(candidates[picture, at] / divisor), texts[picture, at].tolist()) for at in ended
                ]
                done[picture] = sorted(done[picture], key=lambda one: -one[0])[:num_beams]

        going_on = candidates + np.where(is_done, np.float32(_NEVER), np.float32(0))
        chosen = np.argsort(-going_on, axis=1, kind="stable")[:, :num_beams]
        open_texts = np.take_along_axis(texts, chosen[:, :, None], axis=1)
        open_scores = np.take_along_axis(going_on, chosen, axis=1)
        parents = np.take_along_axis(beams, chosen, axis=1) + num_beams * np.arange(batch)[:, None]
        writer.keep(parents.ravel())
        newest = open_texts[:, :, -1:].reshape(-1, 1)

        best_length = (
            rules.max_length - start if early_stopping == "never" and length_penalty > 0 else length + 1 - start
        )
        reachable = open_scores[:, 0] / best_length**length_penalty
        for picture in range(batch):
            full = len(done[picture]) == num_beams
            worst = done[picture][-1][0] if full else _NEVER
            may_improve[picture] &= bool(reachable[picture] > worst)
        all_full = all(len(texts_of) == num_beams for texts_of in done)
        if is_done.all() or not may_improve.any() or (early_stopping is True and all_full):
            break
    best = [texts_of[0][1] for texts_of in done]
    sequences = np.full((batch, max(map(len, best))), pad_id, dtype=np.int64)
    for row, text in enumerate(best):
        sequences[row, : len(text)] = text
    return sequences


class Writing:
    """How a call of `generate` writes: the saved settings, changed by those of the call.

    Args:
        saved: settings by their names in a generation config, all that a call may change.
        prompt: int64 (batch, tokens).
        padding: int64 (batch,), how many of each row's first tokens are padding; None for none.
        changes: of the call.
        max_positions: tokens that the decoder can read; None for any number.

    Raises:
        ValueError: if a setting is not among the saved ones, `num_beams` is below 1, or the decoder has too few positions.
    """

    def __init__(
        self,
        saved: dict[str, Any],
        prompt: np.ndarray,
        padding: np.ndarray | None,
        changes: dict[str, Any],
        max_positions: int | None = None,
    ) -> None:
        if unknown := sorted(set(changes) - set(saved)):
            raise ValueError(
                f"Settings of `generate` here are {', '.join(f'`{name}`' for name in saved)}, got `{unknown[0]}`. Leave it out."
            )
        self.settings = {**saved, **changes}
        if self.settings["num_beams"] < 1:
            raise ValueError(
                f"`num_beams` must be at least 1, got {self.settings['num_beams']}. Use 1 for greedy search."
            )
        max_length = prompt.shape[1] + self.settings["max_new_tokens"]
        positions = max_positions  # the last token is written, and not read
        if positions and prompt.shape[1] > 1:
            max_length = min(max_length, positions + 1)
        if positions and max_length > positions + 1:
            raise ValueError(
                f"The decoder has positions for `max_new_tokens` up to {positions}, got {max_length - 1}. Ask for fewer."
            )
        self.prompt, self.max_length = prompt, max_length
        self.rules = TokenRules(self.settings, prompt.shape[1], max_length, padding)
        self.pad_id = self.settings["pad_token_id"] or 0

    def write(self, writer: Any) -> np.ndarray:
        """Int64 (batch, prompt tokens + tokens)."""
        beams = self.settings["num_beams"]
        if beams == 1:
            return decode_greedily(writer, self.prompt, self.rules, self.pad_id)[0]
        return decode_by_beams(
            writer,
            self.prompt,
            self.rules,
            self.pad_id or (self.rules.end_ids or [0])[0],  # as transformers pads after a beam search
            beams,
            length_penalty=self.settings["length_penalty"],
            early_stopping=self.settings["early_stopping"],
        )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of probabilities along the last axis, float32."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


# A CTC head's word


def best_path(log_probs: np.ndarray, blank: int) -> list[int]:
    """What the likeliest token at each place spells, float32 (places, vocab_size): repeated ones once, blanks not at all."""
    path = log_probs.argmax(axis=-1).tolist()
    return [token for token, before in zip(path, [blank, *path], strict=False) if token not in (before, blank)]


def spelled_log_prob(log_probs: np.ndarray, text: Sequence[int], blank: int) -> float:
    """How likely float32 (places, vocab_size) log-probabilities spell a text, nats: the sum over all ways, -inf where none.

    Source: Graves et al. 2006, eq. 5 to 8, https://www.cs.toronto.edu/~graves/icml_2006.pdf
    """
    states = [blank]
    for token in text:
        states += [token, blank]
    # A token may follow the one before without a blank between, unless they are the same.
    may_skip = np.array([at > 1 and states[at] not in (blank, states[at - 2]) for at in range(len(states))])
    total = np.full(len(states), -np.inf)
    total[:2] = log_probs[0, states[:2]]
    for place in log_probs[1:]:
        one = np.concatenate(([-np.inf], total[:-1]))
        two = np.where(may_skip, np.concatenate(([-np.inf, -np.inf], total[:-2]))[: len(states)], -np.inf)
        total = np.logaddexp(np.logaddexp(total, one), two) + place[states]
    return float(np.logaddexp.reduce(total[-2:]))


def choose_reading(
    draft: tuple[list[int], float], reading: tuple[list[int], float], spelling: np.ndarray, weight: float, blank: int
) -> bool:
    """Whether the CTC head's draft is likelier than the decoder's reading to both together.

    Args:
        draft, reading: tokens without the end, and the decoder's log-probability of them with it, nats.
        spelling: float32 (places, vocab_size), the head's log-probabilities.
        weight: of the head, in [0, 1).

    Source: Watanabe et al. 2017, section III-C, https://doi.org/10.1109/JSTSP.2017.2763455
    """
    scores = []
    for text, told in (draft, reading):
        spelled = spelled_log_prob(spelling, text, blank)
        scores.append((1 - weight) * told + weight * spelled if math.isfinite(spelled) else -math.inf)
    return scores[0] > scores[1]
