"""Learn to remember: recurrent PPO in a T-maze, with episodes that end and begin inside the batch.

    python examples/recurrent_ppo.py                    episode boundaries by `resets=`
    python examples/recurrent_ppo.py --layers split     torch.nn.LSTM, the batch cut at every episode's end

An agent sees at the start of a corridor whether its goal lies to the left or to the right, walks to the
junction, and must turn as it was told: only what it has carried along tells it where.  Many mazes run side by
side for some steps, and their episodes end whenever they end, so that a rollout is full of boundaries that no
state may cross.  `resets=` says where they are, and the layer runs the whole rollout at once; without it the
rollout is cut at each.

Both learn the same from the same seed, to rounding.

Source: Bakker 2002 (the maze), Schulman et al. 2017 (PPO), Schulman et al. 2016 (advantages).

    T steps of a rollout   E environments   H hidden size
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import unspool.nn

FORWARD, LEFT, RIGHT = range(3)
OBSERVATIONS, ACTIONS = 4, 3

State = tuple[Tensor, Tensor]  # h and c, (1, E, H)


@dataclass(frozen=True)
class Config:
    """What a run is made of."""

    layers: str = "resets"
    updates: int = 100
    seed: int = 0
    corridor: int = 12  # steps from the sign to the junction
    environments: int = 32
    steps: int = 128  # of a rollout
    hidden: int = 64
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 1e-3
    discount: float = 0.98
    trace: float = 0.95  # GAE's lambda
    clip: float = 0.2
    entropy: float = 0.02
    largest_gradient: float = 0.5
    threads: int = 1  # torch's: for layers as small as these it has nothing to share out


class Mazes:
    """T-mazes side by side.

    An observation is (goal left, goal right, junction, noise): the goal is shown at the first step alone.
    A turn in the corridor costs 0.1 and leads nowhere, as does walking on at the junction; a turn there ends
    the episode with 1 where it was right, else with -1.
    """

    def __init__(self, count: int, corridor: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.corridor = corridor
        self.at = np.zeros(count, np.int64)
        self.goal = self.rng.integers(LEFT, RIGHT + 1, count)

    def observe(self) -> Tensor:
        seen = np.zeros((len(self.at), OBSERVATIONS), np.float32)
        starts = self.at == 0
        seen[starts, self.goal[starts] - LEFT] = 1
        seen[:, 2] = self.at == self.corridor
        seen[:, 3] = self.rng.uniform(-1, 1, len(self.at))
        return torch.from_numpy(seen)

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Act; returns rewards and which episodes ended.  Those begin anew, with another goal."""
        junction = self.at == self.corridor
        ended = junction & (actions != FORWARD)
        rewards = np.where((actions != FORWARD) == junction, 0.0, -0.1)
        rewards[ended] = np.where(actions == self.goal, 1.0, -1.0)[ended]
        self.at += (actions == FORWARD) & ~junction
        self.at[ended] = 0
        self.goal[ended] = self.rng.integers(LEFT, RIGHT + 1, int(ended.sum()))
        return rewards.astype(np.float32), ended


class Agent(nn.Module):
    """An LSTM between two linear layers: a policy and a value from all that was seen in the episode."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.see = nn.Linear(OBSERVATIONS, config.hidden)
        layer = unspool.nn.LSTM if config.layers == "resets" else nn.LSTM
        self.remember = layer(config.hidden, config.hidden)
        self.decide = nn.Linear(config.hidden, ACTIONS + 1)
        with torch.no_grad():
            self.decide.weight.mul_(0.1)  # begin undecided
        self.splits = config.layers == "split"

    def forward(self, seen: Tensor, starts: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Read (T, E) observations; `starts` (T, E) marks an episode's first, which knows no other.

        Returns:
            Logits (T, E, A), values (T, E), and the state after the last step.
        """
        x = torch.tanh(self.see(seen))
        output, state = (
            self.split(x, starts, state) if self.splits else self.remember(x, state, resets=starts)
        )
        decided = self.decide(output)
        return decided[..., :ACTIONS], decided[..., ACTIONS], state

    def split(self, x: Tensor, starts: Tensor, state: State) -> tuple[Tensor, State]:
        """The same by hand: a piece from each step at which some episode starts to the next."""
        cuts = [t for t in range(len(x)) if t == 0 or bool(starts[t].any())]
        pieces = []
        for first, last in zip(cuts, [*cuts[1:], len(x)], strict=True):
            kept = (~starts[first]).to(x.dtype)[:, None]
            piece, state = self.remember(x[first:last], (state[0] * kept, state[1] * kept))
            pieces.append(piece)
        return torch.cat(pieces), state


class Rollout(NamedTuple):
    """What was seen and done, (T, E) each."""

    seen: Tensor
    starts: Tensor
    actions: Tensor
    likelihood: Tensor  # the log-probability of each action as it was taken
    values: Tensor
    advantages: Tensor
    state: State  # before the first step


class Player:
    """Acts, and remembers between rollouts where it is."""

    def __init__(self, config: Config, agent: Agent) -> None:
        self.config, self.agent = config, agent
        self.mazes = Mazes(config.environments, config.corridor, config.seed)
        self.chance = np.random.default_rng(config.seed + 1)
        zeros = torch.zeros(1, config.environments, config.hidden)
        self.state: State = (zeros, zeros.clone())
        self.starts = torch.ones(1, config.environments, dtype=torch.bool)
        self.earned = np.zeros(config.environments)
        self.returns: list[float] = []  # of the episodes that ended
        self.right = 0  # turns taken as told

    @torch.no_grad()
    def play(self) -> Rollout:
        """Act for a rollout."""
        steps, before = [], self.state
        for _ in range(self.config.steps):
            seen = self.mazes.observe()[None]
            logits, value, self.state = self.agent(seen, self.starts, self.state)
            likelihoods = logits.log_softmax(-1)
            # By inverting the distribution, so that a rounding error does not change whose turn a number is.
            reached = likelihoods[0].exp().cumsum(-1).numpy()
            action = (self.chance.random((len(reached), 1)) > reached[:, :-1]).sum(-1)
            rewards, ended = self.mazes.step(action)
            chosen = torch.from_numpy(action)[None]
            steps.append(
                (
                    seen,
                    self.starts,
                    chosen,
                    likelihoods.gather(-1, chosen[..., None])[..., 0],
                    value,
                    rewards,
                    ended,
                )
            )
            self.starts = torch.from_numpy(ended)[None]
            self._count(rewards, ended)
        _, following, _ = self.agent(self.mazes.observe()[None], self.starts, self.state)
        seen, starts, actions, likelihood, values = (
            torch.cat(part) for part in list(zip(*steps, strict=True))[:5]
        )
        rewards, ended = (np.stack(part) for part in list(zip(*steps, strict=True))[5:])
        advantages = self._advantages(values.numpy(), following[0].numpy(), rewards, ended)
        return Rollout(seen, starts, actions, likelihood, values, torch.from_numpy(advantages), before)

    def _count(self, rewards: NDArray[np.float32], ended: NDArray[np.bool_]) -> None:
        self.earned += rewards
        self.returns += self.earned[ended].tolist()
        self.right += int((rewards[ended] == 1).sum())
        self.earned[ended] = 0

    def _advantages(
        self,
        values: NDArray[np.float32],
        following: NDArray[np.float32],
        rewards: NDArray[np.float32],
        ended: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        advantages, ahead, value = np.zeros_like(rewards), np.zeros_like(following), following
        for t in reversed(range(len(rewards))):
            goes_on = ~ended[t]
            surprise = rewards[t] + self.config.discount * goes_on * value - values[t]
            ahead = surprise + self.config.discount * self.config.trace * goes_on * ahead
            advantages[t], value = ahead, values[t]
        return advantages


def learn(
    config: Config, agent: Agent, optimizer: torch.optim.Optimizer, rollout: Rollout, order: Tensor
) -> None:
    """Take PPO's steps on a rollout: whole sequences, a few environments at a time."""
    targets = rollout.values + rollout.advantages
    wanted = (rollout.advantages - rollout.advantages.mean()) / (rollout.advantages.std() + 1e-8)
    for rows in order.view(-1, config.environments // config.minibatches):
        h, c = (part[:, rows].contiguous() for part in rollout.state)
        logits, values, _ = agent(rollout.seen[:, rows], rollout.starts[:, rows], (h, c))
        likelihoods = logits.log_softmax(-1)
        likelihood = likelihoods.gather(-1, rollout.actions[:, rows, None])[..., 0]
        ratio = (likelihood - rollout.likelihood[:, rows]).exp()
        gain = torch.minimum(
            ratio * wanted[:, rows], ratio.clamp(1 - config.clip, 1 + config.clip) * wanted[:, rows]
        ).mean()
        entropy = -(likelihoods.exp() * likelihoods).sum(-1).mean()
        loss = -gain + 0.5 * (values - targets[:, rows]).square().mean() - config.entropy * entropy
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), config.largest_gradient)
        optimizer.step()


class Result(NamedTuple):
    """What came of a run."""

    returns: list[float]  # mean return of the episodes that ended in each update's rollout
    right: list[float]  # share of them that turned as told
    playing_seconds: float
    learning_seconds: float


def run(config: Config, show: bool = True) -> Result:
    """Play and learn."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    agent = Agent(config)
    optimizer = torch.optim.Adam(agent.parameters(), config.learning_rate)
    player = Player(config, agent)
    shuffle = torch.Generator().manual_seed(config.seed)
    result = Result([], [], 0.0, 0.0)
    for update in range(1, config.updates + 1):
        player.returns, player.right = [], 0
        begun = time.perf_counter()
        rollout = player.play()
        played = time.perf_counter()
        for _ in range(config.epochs):
            learn(config, agent, optimizer, rollout, torch.randperm(config.environments, generator=shuffle))
        result = result._replace(
            playing_seconds=result.playing_seconds + played - begun,
            learning_seconds=result.learning_seconds + time.perf_counter() - played,
        )
        result.returns.append(float(np.mean(player.returns or [0.0])))
        result.right.append(player.right / max(1, len(player.returns)))
        if show and (update % 10 == 0 or update == config.updates):
            print(
                f"update {update}/{config.updates}, {len(player.returns)} episodes, "
                f"mean return {result.returns[-1]:+.3f}, turned as told {result.right[-1]:.0%}, "
                f"playing {result.playing_seconds:.1f} s, learning {result.learning_seconds:.1f} s",
                flush=True,
            )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in asdict(Config()).items():
        choices = ("resets", "split") if name == "layers" else None
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, choices=choices
        )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    given = vars(parser.parse_args())
    show = not given.pop("json")
    result = run(Config(**given), show)
    if not show:
        print(json.dumps(result._asdict()))


if __name__ == "__main__":
    main()
