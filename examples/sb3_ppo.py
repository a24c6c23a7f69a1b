"""PPO on what a frozen encoder sees: bring the hand over the cube, from two cameras and proprioception.

pip install 's2robot[sim,rl]'
python examples/sb3_ppo.py --steps 100000 --envs 4 --out runs/reach-ppo
"""

import argparse

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor

import s2robot
from s2robot.adapters.sb3 import FrameFeatures, GymnasiumVecEnv, S2FeaturesExtractor, S2VecEnv, fit_compression


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="Reach", help="or Lift, which is far harder to explore")
    parser.add_argument("--steps", type=int, default=100_000, help="control steps of all environments together")
    parser.add_argument("--envs", type=int, default=4, help="environments, a process each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/reach-ppo", help="OUT.zip, the policy; OUT.safetensors, its eyes")
    args = parser.parse_args()

    cameras = s2robot.make_vec_env(args.task, args.envs, fidelity="fast", frame_size=256, autoreset_mode="SameStep")
    raw = GymnasiumVecEnv(cameras, cost=1.0)  # rewards are in [0, 1], and success must be worth ending them
    raw.seed(args.seed)

    # A small look: 16 principal components a scale, fitted once to the first frames; then everything is fixed.
    encoder = s2robot.load_encoder("s2robot-tiny")
    first, generator = [raw.reset()["frames"]], np.random.default_rng(args.seed)
    for _ in range(max(4, 64 // args.envs)):
        actions = generator.uniform(-1, 1, (args.envs, *raw.action_space.shape)).astype(np.float32)
        first.append(raw.step(actions)[0]["frames"])
    eyes = FrameFeatures(encoder, compression=fit_compression(encoder, np.concatenate(first), components=16))

    env = VecMonitor(S2VecEnv(raw, eyes))
    rollout = max(2, min(256, args.steps // args.envs))
    policy = {"features_extractor_class": S2FeaturesExtractor, "net_arch": [128, 128]}
    model = PPO("MultiInputPolicy", env, n_steps=rollout, batch_size=min(256, rollout * args.envs), n_epochs=5,
                learning_rate=3e-4, gamma=0.97, seed=args.seed, policy_kwargs=policy, verbose=1)  # fmt: skip
    model.learn(args.steps)
    model.save(args.out)
    eyes.save(f"{args.out}.safetensors")  # the policy acts on these features and no others
    env.close()
    print(f"{args.out}.zip and {args.out}.safetensors")


if __name__ == "__main__":  # environments are processes that import this file
    main()
