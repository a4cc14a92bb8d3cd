"""The main job from end to end: learn a distribution from data, judge it, use it as a prior, look at the posterior."""

import argparse
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import digits
import prior_in_a_model
import swiss_roll

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    output = parser.parse_args().output
    start = time.perf_counter()
    print("1. Learn the swiss roll by SVI")
    prior = swiss_roll.main(output)
    print("\n2. Use it as the prior of a point that is seen in part, with noise of unknown size (DiffusionGibbs)")
    prior_in_a_model.main(output, prior)
    print("\n3. The same with pictures: digits under noise of unknown strength, whole, by half and coarse")
    digits.main(output)
    print(f"\nDone in {time.perf_counter() - start:.0f} s. The pictures are in {output.resolve()}")
