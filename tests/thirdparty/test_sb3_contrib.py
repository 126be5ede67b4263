"""sb3-contrib's RecurrentPPO: its policy's losses and gradients across episode ends, and a short run."""

import time
from typing import Any

import gymnasium
import numpy as np
import torch
from comparison import compare, furthest, keep
from gymnasium import ObservationWrapper, spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from torch import Tensor

import unspool.nn


class PositionsOnly(ObservationWrapper):  # type: ignore[type-arg]
    """Cart and pole without their velocities, which have to be remembered."""

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        low, high = self.env.observation_space.low[[0, 2]], self.env.observation_space.high[[0, 2]]
        self.observation_space = spaces.Box(low, high, dtype=np.float32)

    def observation(self, observation: Any) -> Any:
        return observation[[0, 2]]


def algorithm() -> RecurrentPPO:
    return RecurrentPPO(
        "MlpLstmPolicy",
        PositionsOnly(),
        n_steps=128,
        batch_size=128,
        n_epochs=4,
        seed=0,
        device="cpu",
        policy_kwargs={"lstm_hidden_size": 64},
    )


def test_the_policy() -> None:
    """Values, log-probabilities and entropies of sequences with episode ends within, and their gradients."""
    policy = algorithm().policy
    policy.set_training_mode(True)
    rows, steps = 8, 64
    observations = torch.randn(rows * steps, 2)
    actions = torch.randint(0, 2, (rows * steps,))
    starts = (torch.rand(rows * steps) < 0.05).float()
    state = [torch.randn(1, rows, 64) for _ in range(4)]

    def run(model: Any) -> dict[str, Tensor]:
        states = RNNStates((state[0], state[1]), (state[2], state[3]))
        values, log_probability, entropy = model.evaluate_actions(observations, actions, states, starts)
        return {"values": values, "log-probabilities": log_probability, "entropy": entropy}

    compare("sb3-contrib", "RecurrentPPO: losses over 8 × 64 steps with episode ends", policy, run)


def test_learning() -> None:
    """Act and learn for 1,024 steps from one seed: the same episodes, the same weights to rounding."""
    seconds, rewards, weights = [], [], []
    for ours in (False, True):
        learner = algorithm()
        if ours:
            unspool.nn.swap(learner.policy)
        torch.manual_seed(1)  # making a layer draws its first weights
        started = time.perf_counter()
        learner.learn(1024)
        seconds.append(time.perf_counter() - started)
        rewards.append([round(episode["r"]) for episode in learner.ep_info_buffer or ()])
        weights.append({name: value.detach() for name, value in learner.policy.state_dict().items()})
    assert rewards[0] == rewards[1]
    assert len(rewards[0]) > 10
    apart = furthest(weights[1], weights[0])
    # Rounding grows over 32 optimizer steps; what is held to 1e-5 is `test_the_policy`.
    keep(
        "sb3-contrib",
        f"RecurrentPPO: 1,024 steps of learning, the same {len(rewards[0])} episodes",
        learner.policy,
        apart,
        1e3 * seconds[0],
        1e3 * seconds[1],
        allowed=1e-3,
    )
