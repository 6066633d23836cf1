"""AMC: an agent that learns by reinforcement says list by list how much leaves, and is paid by the value at the end.

He et al. 2018, "AMC: AutoML for Model Compression and Acceleration on Mobile Devices": deep deterministic policy
gradient (DDPG), the limit held by bounding each action; NNI's `AMCPruner`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import nn

from secateur.allocation import Allocator, Gone, Space
from secateur.errors import OptionError

__all__ = ["Amc", "least_gone"]

Step = tuple[torch.Tensor, float, float, torch.Tensor | None]
"""State, action, reward, next state; None after the last list."""


@dataclass(frozen=True)
class Amc(Allocator):
    """Each list's action is a share, at least what the limit asks for if every later list loses all it may.

    In the first `warm` episodes actions are drawn; then the agent acts, with truncated normal noise that falls. The
    best choice seen is the result.

    Args:
        episodes: Choices that are evaluated.
        warm: Episodes of drawn actions.
        noise: The standard deviation of the noise at first.
        decay: The factor of the noise from one episode to the next.

    >>> space = Space(("a", "b"), (10, 10), (9, 9), lambda g: 1 - sum(g) / 20, lambda g: -g[0] - 3.0 * g[1], limit=0.6)
    >>> Amc(episodes=12, warm=10).search(space, seed=0) in space.tried
    True
    """

    episodes: int = 100
    warm: int = 25
    noise: float = 0.5
    decay: float = 0.97

    def __post_init__(self) -> None:
        for name, value in (("episodes", self.episodes), ("warm", self.warm)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"{name}: expected a whole number of at least 1, got {value!r}")
        for name, number in (("noise", self.noise), ("decay", self.decay)):
            if not 0 < number <= 1:
                raise OptionError(f"{name}: expected a number 0 < {name} <= 1, got {number}")

    def search(self, space: Space, seed: int) -> Gone:
        """Play the episodes."""
        space.check_reachable()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            agent, draw = _Agent(seed), random.Random(seed)
        best: Gone | None = None
        for episode in range(self.episodes):
            noise = self.noise * self.decay ** max(0, episode - self.warm)
            gone, steps = self._episode(space, agent, draw, None if episode < self.warm else noise)
            value = space.value(gone)
            agent.remember(steps, value)
            if episode >= self.warm:
                agent.learn(len(steps))
            best = gone if best is None or value > space.value(best) else best
        assert best is not None
        return best

    def _episode(
        self, space: Space, agent: _Agent, draw: random.Random, noise: float | None
    ) -> tuple[Gone, list[tuple[torch.Tensor, float]]]:
        """One choice, and the (state, action) of every list; without noise actions are drawn."""
        gone, steps, before = space.none, [], 0.0
        for at, (count, most) in enumerate(zip(space.counts, space.most, strict=True)):
            state = _state(space, gone, at, before)
            wish = draw.random() if noise is None else _noisy(agent.act(state), noise, draw)
            number = max(least_gone(space, gone, at), min(most, round(wish * count)))
            gone, before = (*gone[:at], number, *gone[at + 1 :]), number / count
            steps.append((state, before))
        return gone, steps


def least_gone(space: Space, gone: Gone, at: int) -> int:
    """How many units a list must lose, so that the limit can still be met by all that come after it.

    Args:
        space: The lists, the cost and the limit.
        gone: What the lists before it have lost.
        at: The place of the list.

    >>> space = Space(("a", "b"), (4, 4), (3, 3), lambda gone: 1 - sum(gone) / 8, lambda gone: 0.0, limit=0.5)
    >>> least_gone(space, (0, 0), 0), least_gone(space, (3, 0), 1)  # 4 of 8 must leave; b can give 3
    (1, 1)
    """
    low, high = 0, space.most[at]
    while low < high:
        middle = (low + high) // 2
        enough = space.fits((*gone[:at], middle, *space.most[at + 1 :]))
        low, high = (low, middle) if enough else (middle + 1, high)
    return low


def _state(space: Space, gone: Gone, at: int, before: float) -> torch.Tensor:
    """What the agent sees: place, size and cost of the list, what is saved, what is left, the last action."""
    last = len(space.names) - 1
    mine = 1 - space.cost(space.alone(at, space.most[at]))
    rest = 1 - space.cost((*((0,) * at), *space.most[at:]))
    size = space.counts[at] / max(space.counts)
    return torch.tensor([at / max(1, last), size, mine, 1 - space.cost(gone), rest, before])


def _noisy(action: float, noise: float, draw: random.Random) -> float:
    """An action with normal noise, drawn again until it is a share."""
    for _ in range(100):
        found = draw.gauss(action, noise)
        if 0 <= found <= 1:
            return found
    return action


class _Agent:
    """Actor and critic, each with a slowly following copy, and what they have seen."""

    def __init__(self, seed: int) -> None:
        self.actor, self.critic = _net(6, nn.Sigmoid()), _net(7, nn.Identity())
        self.slow_actor, self.slow_critic = _net(6, nn.Sigmoid()), _net(7, nn.Identity())
        self.slow_actor.load_state_dict(self.actor.state_dict())
        self.slow_critic.load_state_dict(self.critic.state_dict())
        self._adams = (
            torch.optim.Adam(self.actor.parameters(), lr=1e-4),
            torch.optim.Adam(self.critic.parameters(), lr=1e-3),
        )
        self._seen: list[Step] = []
        self._draw = random.Random(seed + 1)
        self._mean: float | None = None

    def act(self, state: torch.Tensor) -> float:
        """The share that the actor asks for."""
        with torch.no_grad():
            return float(self.actor(state))

    def remember(self, steps: list[tuple[torch.Tensor, float]], value: float) -> None:
        """Keep an episode; every step is paid the value at the end, less the moving mean of values."""
        self._mean = value if self._mean is None else 0.95 * self._mean + 0.05 * value
        following: list[torch.Tensor | None] = [*(state for state, _ in steps[1:]), None]
        for (state, action), after in zip(steps, following, strict=True):
            self._seen.append((state, action, value - self._mean, after))
        del self._seen[:-2000]

    def learn(self, times: int) -> None:
        """Some steps of the optimizers on what was seen."""
        with torch.enable_grad():
            for _ in range(times):
                self._step(self._draw.choices(self._seen, k=64))

    def _step(self, batch: list[Step]) -> None:
        states = torch.stack([state for state, _, _, _ in batch])
        actions = torch.tensor([[action] for _, action, _, _ in batch])
        paid = torch.tensor([[reward] for _, _, reward, _ in batch])
        later = torch.stack([state if after is None else after for state, _, _, after in batch])
        going = torch.tensor([[0.0 if after is None else 1.0] for _, _, _, after in batch])
        with torch.no_grad():
            wished = self.slow_actor(later)
            target = paid + going * self.slow_critic(torch.cat([later, wished], 1))
        for_actor, for_critic = self._adams
        wrong = (self.critic(torch.cat([states, actions], 1)) - target).square().mean()
        for_critic.zero_grad()
        wrong.backward()
        for_critic.step()
        loss = -self.critic(torch.cat([states, self.actor(states)], 1)).mean()
        for_actor.zero_grad()
        loss.backward()
        for_actor.step()
        for slow, fast in ((self.slow_actor, self.actor), (self.slow_critic, self.critic)):
            with torch.no_grad():
                for kept, new in zip(slow.parameters(), fast.parameters(), strict=True):
                    kept.lerp_(new, 0.01)


def _net(width: int, last: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 1), last
    )
