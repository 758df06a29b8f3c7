"""`Space` and `Config`: the knobs of a template, and one choice of them."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tvmops.errors import KnobError

KnobValue = int | str | bool


@dataclass(frozen=True)
class Config:
    """One value for each knob, in the template's order. Hashable, JSON both ways."""

    items: tuple[tuple[str, KnobValue], ...]

    @classmethod
    def of(cls, **knobs: KnobValue) -> Config:
        return cls(tuple(knobs.items()))

    def __getitem__(self, name: str) -> KnobValue:
        for knob, value in self.items:
            if knob == name:
                return value
        raise KeyError(name)

    def number(self, name: str) -> int:
        """Return the value of a knob that holds a number (or a switch, as 0 or 1)."""
        return int(self[name])

    def replace(self, **changes: KnobValue) -> Config:
        return Config(tuple((name, changes.get(name, value)) for name, value in self.items))

    def as_dict(self) -> dict[str, KnobValue]:
        return dict(self.items)

    @property
    def key(self) -> str:
        """A text that is equal for equal configs, whatever the order of their knobs."""
        return json.dumps(self.as_dict(), sort_keys=True)

    def __str__(self) -> str:
        return " ".join(f"{name}={_shown(value)}" for name, value in self.items)


def _shown(value: KnobValue) -> str:
    """Return `value` as text; a long one, such as a trace, by its digest."""
    text = str(value)
    return text if len(text) <= 40 else "#" + hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Knob:
    """A name and its values in a meaningful order: neighbours stand side by side."""

    name: str
    values: tuple[KnobValue, ...]

    def neighbours(self, value: KnobValue) -> tuple[KnobValue, ...]:
        at = self.values.index(value)
        return self.values[max(at - 1, 0) : at] + self.values[at + 1 : at + 2]


@dataclass(frozen=True)
class Space:
    """All configs of `knobs` that `is_legal` accepts; `default` is one of them."""

    template: str
    knobs: tuple[Knob, ...]
    is_legal: Callable[[Config], bool] = field(compare=False)

    def __iter__(self) -> Iterator[Config]:
        """Yield every legal config, in a fixed order."""
        names = [knob.name for knob in self.knobs]
        for values in itertools.product(*(knob.values for knob in self.knobs)):
            config = Config(tuple(zip(names, values)))
            if self.is_legal(config):
                yield config

    def __contains__(self, config: object) -> bool:
        if not isinstance(config, Config) or [n for n, _ in config.items] != [k.name for k in self.knobs]:
            return False
        return all(
            value in knob.values for knob, (_, value) in zip(self.knobs, config.items)
        ) and self.is_legal(config)

    def sample(self, rng: random.Random, tries: int = 1000) -> Config | None:
        """Draw a legal config uniformly, or None if `tries` draws found none."""
        for _ in range(tries):
            config = Config(tuple((knob.name, rng.choice(knob.values)) for knob in self.knobs))
            if self.is_legal(config):
                return config
        return None

    def neighbours(self, config: Config) -> list[Config]:
        """Return the legal configs that differ from `config` in one knob by one step."""
        near = []
        for knob in self.knobs:
            for value in knob.neighbours(config[knob.name]):
                candidate = config.replace(**{knob.name: value})
                if self.is_legal(candidate):
                    near.append(candidate)
        return near

    def config(self, knobs: Mapping[str, KnobValue]) -> Config:
        """Return the config with these values, e.g. as read from a log.

        Raises
        ------
        KnobError
            A knob is missing, unknown, or has a value outside this space.
        """
        for name in knobs:
            if name not in {knob.name for knob in self.knobs}:
                raise KnobError(
                    template=self.template, knob=name, value=knobs[name], expected="a knob of this template"
                )
        for knob in self.knobs:
            if knobs.get(knob.name) not in knob.values:
                raise KnobError(
                    template=self.template,
                    knob=knob.name,
                    value=knobs.get(knob.name, "missing"),
                    expected="one of " + ", ".join(map(str, knob.values)),
                )
        config = Config(tuple((knob.name, knobs[knob.name]) for knob in self.knobs))
        if not self.is_legal(config):
            raise KnobError(
                template=self.template, knob="all", value=str(config), expected="a legal combination"
            )
        return config
