"""Listening tests that nobody has taken: ratings of simulated listeners, honest ones and random clickers."""

import numpy as np

from tokkata.core.recipe import check_section
from tokkata.eval.listening.definition import Definition
from tokkata.eval.listening.preference import design
from tokkata.eval.listening.ratings import Rating
from tokkata.eval.listening.simulation import RaterModel, simulate

DURATION_S = 8.0
TONES = (2, 3, 4, 5)
"""Right answers in attention trials."""


def made_definition(systems, method="acr", attributes=("quality",), **changes):
    """The definition of a test of `systems`, with recordings where the method needs them."""
    return check_section(
        Definition,
        {
            "method": method,
            "attributes": [{"name": name, "question": f"How is the {name}?"} for name in attributes],
            "systems": [{"name": name, "path": name} for name in systems],
            "reference": "real" if method == "mushra" else None,
            "items_per_listener": 10,
            "attention_items": 0 if method == "mushra" else 2,
            "loudness_lufs": -23.0,
            "seed": 1,
        }
        | changes,
    )


def made_rating(**changes):
    """One rating, with values changed."""
    values = {
        "listener": "l0",
        "trial": "t0",
        "item": "i0",
        "system": "ours",
        "role": "scored",
        "attribute": "quality",
        "method": "acr",
        "value": 3.0,
        "against": None,
        "repeat": 0,
        "expected": None,
        "listened_s": DURATION_S,
        "duration_s": DURATION_S,
        "answered_at": "2025-01-01T00:00:00Z",
    }
    return Rating(**values | changes)


def role_of(system):
    """The role of a system by its name."""
    if system.startswith("anchor_"):
        return "anchor"
    return "reference" if system in ("reference", "reconstructed") else "scored"


def from_grid(values, systems, attribute="quality", method="acr", prefix="l", **changes):
    """A rating for each number in `values` [S, L, I]."""
    return [
        made_rating(
            listener=f"{prefix}{listener:02}",
            item=f"i{item:02}",
            system=systems[system],
            role=role_of(systems[system]),
            trial=f"{prefix}{listener}-{item}-{system}",
            attribute=attribute,
            method=method,
            value=float(values[system, listener, item]),
            **changes,
        )
        for system, listener, item in np.argwhere(~np.isnan(values))
    ]


def attention_rating(listener, number, share_right, random):
    """An attention trial: a listener counts the tones in `share_right` of them, else clicks anywhere."""
    expected = float(random.choice(TONES))
    value = expected if random.random() < share_right else float(random.integers(1, 6))
    return made_rating(
        listener=listener,
        item=f"tones-{number}",
        system="attention",
        role="attention",
        attribute="attention",
        value=value,
        expected=expected,
    )


def honest_ratings(
    means, num_listeners, num_items, model=None, seed=0, attribute="quality", repeats=2, lapses=0.0
):
    """ACR ratings of systems with latent `means` by name, of listeners who pay attention but for `lapses`.

    A second answer is the first and a new deviation of a single rating, rounded to the scale.
    """
    random = np.random.default_rng(seed)
    model = model or RaterModel()
    values = simulate(
        model,
        list(means.values()),
        num_studies=1,
        num_listeners=num_listeners,
        num_items=num_items,
        generator=random,
    )[0]
    ratings = from_grid(values, list(means), attribute)
    listeners = sorted({rating.listener for rating in ratings})
    for listener in listeners:
        own = [rating for rating in ratings if rating.listener == listener]
        ratings += [attention_rating(listener, number, 1.0 - lapses, random) for number in range(2)]
        for chosen in random.choice(len(own), repeats, replace=False):
            again = own[chosen].value + model.rest * random.standard_normal()
            ratings.append(
                made_rating(
                    **{
                        **vars(own[chosen]),
                        "trial": "again",
                        "repeat": 1,
                        "value": float(np.clip(np.rint(again), 1, 5)),
                    }
                )
            )
    return ratings


def clicked_ratings(systems, num_listeners, num_items, seed=0, attribute="quality", repeats=2):
    """ACR ratings of listeners who click anywhere, attention trials and repetitions included."""
    random = np.random.default_rng(seed)
    values = random.integers(1, 6, (len(systems), num_listeners, num_items)).astype(float)
    ratings = from_grid(values, list(systems), attribute, prefix="clicker")
    for listener in sorted({rating.listener for rating in ratings}):
        own = [rating for rating in ratings if rating.listener == listener]
        ratings += [attention_rating(listener, number, 0.0, random) for number in range(2)]
        ratings += [
            made_rating(
                **{
                    **vars(own[chosen]),
                    "trial": "again",
                    "repeat": 1,
                    "value": float(random.integers(1, 6)),
                }
            )
            for chosen in random.choice(len(own), repeats, replace=False)
        ]
    return ratings


def preference_counts(strengths, tie, num_listeners, num_items, random, listener_sd=0.0, item_sd=0.0):
    """Answers [L, I, P, 3] by Davidson's model to all pairs, with strengths that vary around `strengths`."""
    num = len(strengths)
    pairs = [(i, j) for i in range(num) for j in range(i + 1, num)]
    parameters = (
        np.array(strengths)
        + listener_sd * random.standard_normal((num_listeners, 1, num))
        + item_sd * random.standard_normal((1, num_items, num))
    )
    parameters = np.concatenate([parameters, np.full((num_listeners, num_items, 1), np.log(tie))], axis=-1)
    weights = np.exp(np.einsum("lid,pod->lipo", parameters, design(num, pairs)))
    cumulated = np.cumsum(weights / weights.sum(-1, keepdims=True), axis=-1)
    outcome = (random.random((num_listeners, num_items, len(pairs), 1)) > cumulated).sum(-1)
    return np.eye(3)[np.minimum(outcome, 2)]


def preference_ratings(systems, counts, attribute="quality"):
    """A rating for each answer in `counts` [L, I, P, 3]; every other one names the second system first."""
    names = list(systems)
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    ratings = []
    for place, (listener, item, pair, outcome) in enumerate(np.argwhere(counts > 0)):
        value = (1.0, 0.0, 0.5)[outcome]
        one, other = (names[k] for k in pairs[pair])
        if place % 2:
            one, other, value = other, one, 1.0 - value
        ratings.append(
            made_rating(
                listener=f"l{listener:02}",
                item=f"i{item:02}",
                system=one,
                against=other,
                value=value,
                method="ab",
                attribute=attribute,
            )
        )
    return ratings


def mushra_ratings(means, num_listeners, num_items, seed=0, careless=0):
    """MUSHRA ratings by name; the first `careless` listeners cannot hear which is the hidden reference."""
    random = np.random.default_rng(seed)
    values = simulate(
        RaterModel(listener=6, item=4, listener_system=3, item_system=5, rest=9),
        list(means.values()),
        num_studies=1,
        num_listeners=num_listeners,
        num_items=num_items,
        generator=random,
        scale=(0.0, 100.0),
    )[0]
    reference = list(means).index("reference")
    values[reference] = random.integers(92, 101, (num_listeners, num_items))
    values[reference, :careless] = random.integers(20, 80, (careless, num_items))
    return from_grid(values, list(means), method="mushra")
