"""Synthetic scenes: an icy bay through a camera on the shore, with the truth known exactly."""

from train.synth.camera import Camera
from train.synth.conditions import Conditions
from train.synth.scene import Scene, make_scene
from train.synth.write import write_dataset

__all__ = ["Camera", "Conditions", "Scene", "make_scene", "write_dataset"]
