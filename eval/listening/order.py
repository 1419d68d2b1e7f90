"""What each listener hears, and in which order: a function of the test, its seed and the listener's number.

Letters: C conditions (a system's clip, or in A/B a pair of systems), n items of one listener.

A listener hears n rounds. Each round has every condition once, in a row of a Williams square: over C
listeners (2C if C is odd) every condition stands equally often at each place, and follows each other one
equally often (Williams 1949). Rounds follow each other so that no condition is its own neighbour. Which item
a condition takes in a round is a Latin square too, so that after n rounds each condition has had each item.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Literal

from .definition import Definition
from .stimuli import ATTENTION, RECONSTRUCTED, REFERENCE, Manifest, anchor_name

TrialKind = Literal["practice", "rated", "attention"]
Condition = tuple[str, ...]
"""The names of the systems that a trial compares: one, in A/B two, in MUSHRA all."""


@dataclass(frozen=True)
class Trial:
    """One screen."""

    kind: TrialKind
    item: str
    stimuli: tuple[str, ...]
    """Ids of the clips in the order in which they are shown."""
    reference: str | None = None
    """MUSHRA: id of the recording that is shown as such."""
    repeat: int = 0
    """1 if the listener has rated the same before."""
    expected: float | None = None
    """Attention trials: the right answer. In A/B, 1 is the first clip."""


def rated_systems(definition: Definition) -> list[str]:
    """All whose clips listeners rate: the systems, then what is hidden among them."""
    hidden = [REFERENCE] if definition.reference is not None else []
    hidden += [RECONSTRUCTED] if definition.codec is not None else []
    hidden += [anchor_name(cutoff) for cutoff in definition.anchors_hz]
    return [*(system.name for system in definition.systems), *hidden]


def plan_trials(definition: Definition, manifest: Manifest, number: int) -> list[Trial]:
    """The trials of listener `number` (from 0 on)."""
    return _Plan(definition, manifest, number).trials()


def williams_row(num_conditions: int, shift: int, mirrored: bool) -> list[int]:
    """A row of the Williams square of `num_conditions`: 0, 1, C-1, 2, C-2, … plus `shift`, modulo C."""
    steps = [0]
    low, high = 1, num_conditions - 1
    while low <= high:
        steps += [low] if low == high else [low, high]
        low, high = low + 1, high - 1
    row = [(step + shift) % num_conditions for step in steps]
    return row[::-1] if mirrored else row


class _Plan:
    def __init__(self, definition: Definition, manifest: Manifest, number: int) -> None:
        self._definition, self._manifest, self._number = definition, manifest, number
        self._random = random.Random(f"{definition.seed}:{number}")
        shared = random.Random(f"{definition.seed}")  # the same for all listeners
        systems = rated_systems(definition)
        self._conditions = _conditions(definition, systems)
        shared.shuffle(self._conditions)
        self._clips = {system: manifest.of_system(system) for system in systems}
        self._items = list(next(iter(self._clips.values())))
        shared.shuffle(self._items)
        self._take_items()

    def _take_items(self) -> None:
        """Listeners go through the items in turns: none is rated twice more than another."""
        wanted = self._definition.items_per_listener
        first = self._number * wanted
        turns = [divmod(first + k, len(self._items)) for k in range(wanted)]
        self._random.shuffle(turns)
        self._mine = [self._items[place] for _, place in turns]
        # How often each has been rated before, from which A/B's sides follow.
        self._uses = {self._items[place]: turn + place for turn, place in turns}
        others = [self._items[(first + wanted + k) % len(self._items)] for k in range(len(self._items))]
        self._practice = others[: self._definition.practice_items] or others

    def trials(self) -> list[Trial]:
        """Practice, the rated rounds with attention trials in between, and the repetitions."""
        num_conditions, num_items = len(self._conditions), len(self._mine)
        num_practice, num_repeats = self._definition.practice_items, self._definition.repeated_items
        before = -(-num_practice // num_conditions)
        after = -(-num_repeats // num_conditions)
        practice = self._sequence(range(-before, 0))[before * num_conditions - num_practice :]
        rated = self._sequence(range(num_items))
        repeats = self._sequence(range(num_items, num_items + after))[:num_repeats]
        trials = [self._rated(round_, condition) for round_, condition in rated]
        trials += [self._rated(round_, condition, repeat=1) for round_, condition in repeats]
        return [
            *(self._practised(k, condition) for k, (_, condition) in enumerate(practice)),
            *self._with_attention(trials),
        ]

    def _sequence(self, rounds: range) -> list[tuple[int, int]]:
        """Round and condition of each trial in `rounds`."""
        num = len(self._conditions)
        mirrored = bool(num % 2 and (self._number // num) % 2)
        # With two conditions only A B A B … keeps both apart from themselves.
        step = 0 if num <= 2 else -1 if mirrored else 1
        return [
            (round_, condition)
            for round_ in rounds
            for condition in williams_row(num, self._number + round_ * step, mirrored)
        ]

    def _rated(self, round_: int, condition: int, repeat: int = 0) -> Trial:
        item = self._mine[(round_ + condition) % len(self._mine)]
        swapped = bool((self._uses[item] + condition + repeat) % 2)
        return self._trial("rated", condition, item, swapped, round_, repeat)

    def _practised(self, k: int, condition: int) -> Trial:
        item = self._practice[k % len(self._practice)]
        return self._trial("practice", condition, item, bool(k % 2), k)

    def _trial(
        self, kind: TrialKind, condition: int, item: str, swapped: bool, round_: int, repeat: int = 0
    ) -> Trial:
        systems = list(self._conditions[condition])
        if self._definition.method == "mushra":
            systems = [systems[k] for k in williams_row(len(systems), self._number + round_ + repeat, False)]
        elif swapped:
            systems.reverse()
        stimuli = tuple(self._clips[system][item] for system in systems)
        reference = self._clips[REFERENCE][item] if self._definition.method == "mushra" else None
        alone = not self._definition.paired and len(systems) == 1
        return Trial(kind, f"{systems[0]}/{item}" if alone else item, stimuli, reference, repeat)

    def _with_attention(self, trials: list[Trial]) -> list[Trial]:
        """Attention trials about equally far apart, never two in a row unless there is nothing between."""
        num, clips = self._definition.attention_items, self._manifest.of_system(ATTENTION)
        right = [list(clips)[k % len(clips)] for k in range(num)]
        self._random.shuffle(right)
        mixed = list(trials)
        for k in reversed(range(num)):
            place = int((k + self._random.uniform(0.25, 0.75)) / num * len(trials))
            mixed.insert(place, self._attention(right[k], clips))
        return mixed

    def _attention(self, answer: str, clips: dict[str, str]) -> Trial:
        if self._definition.method == "acr":
            return Trial("attention", f"tones-{answer}", (clips[answer],), expected=float(answer))
        other = self._random.choice([count for count in clips if count != answer])
        more = float(int(answer) > int(other))
        return Trial("attention", f"tones-{answer}-{other}", (clips[answer], clips[other]), expected=more)


def _conditions(definition: Definition, systems: list[str]) -> list[Condition]:
    if definition.method == "acr":
        return [(system,) for system in systems]
    if definition.method == "ab":
        return list(itertools.combinations(systems, 2))
    return [tuple(systems)]
