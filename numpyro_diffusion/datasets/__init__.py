"""Data to learn from: made from a key, or shipped inside a package; nothing is downloaded.

    swiss_roll, heartbeat     the paper's toy data, with their true entropies
    dead_leaves               images of occluding discs, of any size
    digits, textures          small photographs out of scikit-learn and scikit-image
    power_demand              daily curves of electricity demand, out of sktime
    dequantise, standardise, patches     from integer images to what a Gaussian kernel expects

Images have shape (images, height, width, channels).
"""

from .bundled import LabelledImages, digits, textures
from .dead_leaves import dead_leaves
from .images import Scaling, dequantise, patches, standardise
from .power import power_demand
from .toy import heartbeat, heartbeat_entropy, swiss_roll, swiss_roll_entropy, swiss_roll_log_prob

__all__ = [
    "LabelledImages",
    "Scaling",
    "dead_leaves",
    "dequantise",
    "digits",
    "heartbeat",
    "heartbeat_entropy",
    "patches",
    "power_demand",
    "standardise",
    "swiss_roll",
    "swiss_roll_entropy",
    "swiss_roll_log_prob",
    "textures",
]
